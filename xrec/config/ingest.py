"""Settings of the stage that reads raw dumps."""

from typing import Literal

from pydantic import Field

from xrec.config.base import Count, Section


class IngestCompute(Section):
    chunk_megabytes: Count = Field(
        default=64, description="a file's share that one task reads; also the step of a resumed run"
    )


class IngestConfig(Section):
    """Raw dumps of reviews and item metadata."""

    source: Literal["yelp", "amazon", "google", "generic"] = Field(description="whose layout the files have")
    files: tuple[str, ...] = Field(description="paths or fsspec URIs")
    compute: IngestCompute = IngestCompute()
