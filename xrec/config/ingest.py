"""Settings of the stage that reads raw dumps."""

from datetime import date
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from xrec.config.base import Count, Gibibytes, Rate, Section, Share


class ReviewColumns(Section):
    """What a generic file of reviews calls its columns; None: it has no such column."""

    user_id: str = Field(default="user_id", description="column of the user's id")
    item_id: str = Field(default="item_id", description="column of the item's id")
    rating: str | None = Field(default="rating", description="column of the rating, a number")
    timestamp: str | None = Field(default="timestamp", description="column of the time of the review")
    text: str | None = Field(default="text", description="column of the review's text")


class ItemColumns(Section):
    """What a generic file of items calls its columns; None: it has no such column."""

    item_id: str = Field(default="item_id", description="column of the item's id")
    title: str | None = Field(default="title", description="column of the item's title")
    description: str | None = Field(default="description", description="column of the item's description")
    attributes: tuple[str, ...] = Field(default=(), description="columns that become the item's attributes")


class IngestCompute(Section):
    chunk_megabytes: Rate = Field(
        default=64, description="a file's share that one task reads; also the step of a resumed run"
    )
    tasks: Count | None = Field(default=None, description="chunks that are read at once; default: one a CPU")
    cpus_per_task: Rate = Field(default=1, description="logical CPUs of a chunk's task")
    memory_per_task: Gibibytes | None = Field(
        default=None, description="GiB that a chunk's task reserves; default: none"
    )


class IngestConfig(Section):
    """Raw dumps of reviews and item metadata."""

    source: Literal["yelp", "amazon", "google", "generic"] = Field(description="whose layout the files have")
    files: Annotated[tuple[str, ...], Field(min_length=1)] = Field(
        description="paths, globs or fsspec URIs; whether one holds reviews or items is seen from its content, but for "
        "`generic`, where they hold reviews"
    )
    items_files: tuple[str, ...] = Field(default=(), description="for `generic`: files of items")
    layout: Literal["auto", "2018", "2023"] = Field(
        default="auto", description="for `amazon`: the release's layout; `auto` sees it from the content"
    )
    format: Literal["auto", "json", "csv", "parquet"] = Field(
        default="auto", description="the files' format; `auto` goes by their suffix (.json .jsonl .csv .tsv .parquet)"
    )
    delimiter: Annotated[str, Field(min_length=1, max_length=1)] | None = Field(
        default=None, description="for CSV: what separates columns; default: a tab in .tsv files, else a comma"
    )
    review_columns: ReviewColumns = Field(default=ReviewColumns(), description="for `generic`: the reviews' columns")
    item_columns: ItemColumns = Field(default=ItemColumns(), description="for `generic`: the items' columns")
    timestamp: Literal["auto", "seconds", "milliseconds"] = Field(
        default="auto",
        description="for `generic`: unit of numeric times; `auto`: milliseconds where a number exceeds 1e11. Texts "
        "such as 2020-01-31 13:05:00 (ISO 8601; UTC unless they say otherwise) are understood in any case",
    )
    empty_text: Literal["drop", "keep"] = Field(
        default="drop", description="reviews without text; kept, they count as interactions only"
    )
    min_words: Annotated[int, Field(ge=0)] = Field(default=0, description="drop texts of fewer words; empty ones apart")
    min_rating: float | None = Field(default=None, description="drop reviews rated below this; unrated ones are kept")
    since: date | None = Field(default=None, description="drop reviews before this day (UTC); undated ones are kept")
    until: date | None = Field(default=None, description="drop reviews after this day (UTC); undated ones are kept")
    user_share: Share = Field(default=1.0, description="share of the users that is kept, chosen by hash of their ids")
    required_item_fields: tuple[str, ...] = Field(
        default=(), description="drop items without one of these: title, description, or an attribute's name"
    )
    unlisted_items: Literal["keep", "drop"] = Field(
        default="keep", description="reviews of items that no file of items lists, or that were dropped from it"
    )
    unreviewed_items: Literal["keep", "drop"] = Field(default="keep", description="items that no kept review is of")
    seed: int = Field(default=0, description="the same seed keeps the same users")
    compute: IngestCompute = IngestCompute()

    def identity(self) -> dict[str, Any]:
        """What determines the result but for the files, whose contents count, not their paths."""
        settings = self.model_dump(mode="json", exclude={"compute", "files", "items_files", "source"})
        return {"source": f"ingest:{self.source}", **settings}

    @model_validator(mode="after")
    def _settings_belong_to_the_source(self):
        owners = {"items_files": "generic", "review_columns": "generic", "item_columns": "generic"}
        for name, owner in {**owners, "timestamp": "generic", "layout": "amazon"}.items():
            if self.source != owner and getattr(self, name) != type(self).model_fields[name].default:
                raise ValueError(
                    f"{name} is set, but source = {self.source}; it is for source = {owner} alone, remove it"
                )
        return self

    @model_validator(mode="after")
    def _period_is_not_empty(self):
        if self.since and self.until and self.since > self.until:
            raise ValueError(f"since = {self.since} is after until = {self.until}; exchange them")
        return self
