"""The data that prompts quote, one JSON object a text to be written, as a stream of Arrow tables in key order.

    item_profile   {"title": str, "attributes": {...}?, "description": str?, "reviews": [str, ...]?}
    user_profile   {"items": [{"title": str, "profile": str?, "review": str?}, ...]}
    explanation    {"review": str}

Fields with a question mark are absent where nothing is known. An item of which nothing is known, a user without
training items and a pair without a review's text have no record. Which texts are chosen is `selection.py`'s business,
how a prompt quotes them `prompts.py`'s.
"""

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import groupby
from operator import itemgetter
from typing import Any

import pyarrow as pa

from xrec.config.profile import TEXT_KINDS, ProfileConfig, TextKind
from xrec.profiles.database import Database
from xrec.profiles.selection import Row, Selection
from xrec.workspace import Workspace, WorkspaceError

_INDEX, _STR = pa.int32(), pa.string()
SCHEMAS: dict[TextKind, pa.Schema] = {
    "item_profile": pa.schema([("item", _INDEX), ("record", _STR)]),
    "user_profile": pa.schema([("user", _INDEX), ("record", _STR)]),
    "explanation": pa.schema(
        [("user", _INDEX), ("item", _INDEX), ("split", _STR), ("feature", _STR), ("record", _STR)]
    ),
}
_POPULATION: dict[TextKind, str] = {"item_profile": "items_index", "user_profile": "users", "explanation": "pairs"}
# Of an English word with the space after it, for profiles that are still to be written.
_CHARACTERS_PER_WORD = 6


@dataclass(frozen=True)
class RecordCount:
    """How much there is to write of one kind.

    Attributes:
        rows: records.
        characters: of all records together.
        without_record: items, users or pairs of which nothing usable is known (or that were not drawn).
    """

    rows: int
    characters: int
    without_record: int


def check_sources(workspace: Workspace) -> None:
    """Make sure that there is something to write from.

    Raises:
        WorkspaceError: a stage before is unfinished, or no review has a text.
    """
    workspace.manifest("data")
    workspace.manifest("preprocess")
    with Database(workspace, "1GB", None, None) as database:
        if not Selection(database, seed=0, characters=1).has_review_text():
            raise WorkspaceError(
                f"workspace {workspace}: no review has a text, so there is nothing to write profiles and explanations "
                "from (a published XRec folder carries finished texts instead of reviews, and needs no profile stage); "
                "make data with `xrec ingest` or `xrec sample`"
            )


def record_batches(
    workspace: Workspace,
    config: ProfileConfig,
    kind: TextKind,
    rows: int,
    *,
    memory_limit: str = "2GB",
    threads: int | None = None,
    temporary: str | None = None,
) -> Iterator[pa.Table]:
    """The records of one kind, in the order of their keys.

    Args:
        workspace: stages `data` and `preprocess` finished; `user_profile` quotes what `profile/item_profiles` has.
        config: draws, limits and seed.
        rows: of each table; the last may have fewer.
        memory_limit, threads, temporary: see `Database`.

    Yields:
        Tables of `SCHEMAS[kind]`.

    Raises:
        WorkspaceError: a table is absent.
    """
    with Database(workspace, memory_limit, threads, temporary) as database:
        selection = Selection(database, config.seed, config.review_characters)
        yield from _tables(_records(selection, config, kind), SCHEMAS[kind], rows)


def count_records(
    workspace: Workspace,
    config: ProfileConfig,
    *,
    memory_limit: str = "2GB",
    threads: int | None = None,
    temporary: str | None = None,
) -> dict[TextKind, RecordCount]:
    """What a run would write, without writing: exact but for the item profiles in users' records, which are estimated.

    Args:
        workspace, config, memory_limit, threads, temporary: as for `record_batches`.
    """
    counts: dict[TextKind, RecordCount] = {}
    with Database(workspace, memory_limit, threads, temporary) as database:
        selection = Selection(database, config.seed, config.review_characters)
        for kind in TEXT_KINDS:
            rows = characters = 0
            for record in _records(selection, config, kind, estimate=True):
                rows, characters = rows + 1, characters + len(record["record"])
            counts[kind] = RecordCount(rows, characters, selection.count(_POPULATION[kind]) - rows)
    return counts


def cut(text: str, characters: int) -> str:
    """At most so many characters of a text, up to the end of a word where one ends in the last half."""
    text = text.strip()
    if len(text) <= characters:
        return text
    head = text[: characters + 1]
    end = max((place for place, character in enumerate(head) if character.isspace()), default=0)
    return (head[:end] if end > characters // 2 else head[:characters]).rstrip()


def _records(selection: Selection, config: ProfileConfig, kind: TextKind, estimate: bool = False) -> Iterator[Row]:
    characters = config.review_characters
    if kind == "item_profile":
        yield from _item_records(selection.item_texts(config.reviews_per_item), characters)
    elif kind == "user_profile":
        imagined = (config.reviews_per_item, config.max_words * _CHARACTERS_PER_WORD) if estimate else None
        yield from _user_records(selection.user_texts(config.items_per_user, imagined), characters)
    else:
        for row in selection.pair_texts(config.explained_pairs):
            yield row | {"record": _json({"review": cut(row["text"], characters)})}


def _item_records(rows: Iterable[Row], characters: int) -> Iterator[Row]:
    for item, of_item in groupby(rows, itemgetter("item")):
        first, *others = of_item
        record: Row = {"title": first["title"]}
        if first["attributes"]:
            record["attributes"] = _attributes(first["attributes"], characters)
        if first["description"]:
            record["description"] = cut(first["description"], characters)
        reviews = [cut(row["text"], characters) for row in (first, *others) if row["text"]]
        if reviews:
            record["reviews"] = reviews
        yield {"item": item, "record": _json(record)}


def _user_records(rows: Iterable[Row], characters: int) -> Iterator[Row]:
    for user, of_user in groupby(rows, itemgetter("user")):
        items = []
        for row in of_user:
            entry = {"title": row["title"]}
            if row["profile"]:
                entry["profile"] = row["profile"]
            if row["text"]:
                entry["review"] = cut(row["text"], characters)
            items.append(entry)
        yield {"user": user, "record": _json({"items": items})}


def _attributes(text: str, characters: int) -> Any:
    """An item's attributes, as many of the first as fit into so many characters; a text that is not JSON as it is."""
    try:
        value = json.loads(text)
    except json.JSONDecodeError:
        return cut(text, characters)
    if not isinstance(value, dict):
        return cut(text, characters)
    kept, room = {}, characters
    for name, entry in value.items():
        room -= len(name) + len(_json(entry))
        if room < 0:
            break
        kept[name] = entry
    return kept


def _json(value: Any) -> str:
    # JSON may spell half a surrogate pair, which is no text.
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "replace").decode()


def _tables(records: Iterable[Row], schema: pa.Schema, rows: int) -> Iterator[pa.Table]:
    block: list[Row] = []
    for record in records:
        block.append(record)
        if len(block) == rows:
            yield _table(block, schema)
            block = []
    if block:
        yield _table(block, schema)


def _table(rows: list[Row], schema: pa.Schema) -> pa.Table:
    return pa.Table.from_pylist([{name: row[name] for name in schema.names} for row in rows], schema)
