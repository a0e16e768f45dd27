"""How far a split keeps what is tested apart from what was learnt: counts of shared pairs and shared texts.

A run of `RUN` words that a test reference has in common with a text of the training side is no proof of a leak: texts
written after templates, or by a model with habits, share many. It is an upper bound of what could have been copied.
"""

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import Any

# pyright: reportAttributeAccessIssue=false
# (pyarrow.compute makes its functions at import, where pyright cannot see them)
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from xrec.evaluation.distinct import words
from xrec.profiles.database import Database
from xrec.workspace import Workspace

RUN = 8
_PAIR = ["user", "item"]
_MEMORY, _TEXTS_AT_ONCE = "1GB", 2048
_MEANING = {
    "pairs_in_training_graph": "Explained test pairs that are edges of the training graph: the embeddings know them.",
    "unseen_users": "Explained test pairs whose user has no training edge.",
    "unseen_items": "Explained test pairs whose item has no training edge.",
    "pairs_in_another_split": "Explained test pairs that another split's interactions hold too, beside those above.",
    "references_among_training": "Test references that are, but for case and punctuation, a training explanation.",
    "run_with_training": f"Test references that share {RUN} words in a row with a training explanation.",
    "run_with_own_profiles": f"Test references that share {RUN} words in a row with a profile of their user or item.",
    "run_with_training_reviews": f"Test references that share {RUN} words in a row with a training review.",
}


def leakage(workspace: Workspace, split: str = "test") -> dict[str, Any]:
    """The report of one workspace.

    Args:
        workspace: stage `preprocess` finished, with explanations.
        split: the held-out split that is looked at.

    Returns:
        `split`; `pairs`, the explained pairs of the split; `training_pairs`; and `leaks`, name ->
        `{count, share, meaning}`, where count and share are None for texts that the data lack.

    Raises:
        WorkspaceError: a table is absent.
    """
    explained = workspace.read_text_table("explanations")
    explained = explained.filter(pc.equal(explained["status"], "ok")).select([*_PAIR, "split", "explanation"])
    held_out = explained.filter(pc.equal(explained["split"], split))
    training = explained.filter(pc.equal(explained["split"], "train"))
    interactions = workspace.read_table("preprocess", "interactions")
    counts = _pair_counts(held_out, interactions, split) | _text_counts(workspace, held_out, training)
    training_pairs = int(pc.sum(pc.equal(interactions["split"], "train")).as_py() or 0)
    leaks = {name: _leak(counts[name], len(held_out), meaning) for name, meaning in _MEANING.items()}
    return {"split": split, "pairs": len(held_out), "training_pairs": training_pairs, "leaks": leaks}


def _leak(count: int | None, pairs: int, meaning: str) -> dict[str, Any]:
    share = count / pairs if count is not None and pairs else None
    return {"count": count, "share": share, "meaning": meaning}


def _pair_counts(held_out: pa.Table, interactions: pa.Table, split: str) -> dict[str, int | None]:
    edges = interactions.filter(pc.equal(interactions["split"], "train")).select(_PAIR)
    others = interactions.filter(pc.invert(pc.is_in(interactions["split"], value_set=pa.array(["train", split]))))
    pairs = held_out.select(_PAIR)
    return {
        "pairs_in_training_graph": pairs.join(edges, keys=_PAIR, join_type="left semi").num_rows,
        "pairs_in_another_split": pairs.join(others.select(_PAIR), keys=_PAIR, join_type="left semi").num_rows,
        "unseen_users": _absent(pairs["user"], edges["user"]),
        "unseen_items": _absent(pairs["item"], edges["item"]),
    }


def _absent(nodes: pa.ChunkedArray, known: pa.ChunkedArray) -> int:
    return len(nodes) - int(pc.sum(pc.is_in(nodes, value_set=pc.unique(known))).as_py() or 0)


def _text_counts(workspace: Workspace, held_out: pa.Table, training: pa.Table) -> dict[str, int | None]:
    references = held_out["explanation"].to_pylist()
    runs = Runs(references)
    known = {_normal(text) for text in references}
    verbatim = known & {normal for text in _texts(training["explanation"]) if (normal := _normal(text)) in known}
    reviews = None
    if workspace.has_table("data", "reviews") and any(_training_reviews(workspace)):
        reviews = int(runs.shared(_training_reviews(workspace)).sum())
    return {
        "references_among_training": sum(_normal(text) in verbatim for text in references),
        "run_with_training": int(runs.shared(_texts(training["explanation"])).sum()),
        "run_with_own_profiles": _with_own_profiles(workspace, held_out),
        "run_with_training_reviews": reviews,
    }


class Runs:
    """The runs of `RUN` words of some texts, as 64-bit hashes: 8 bytes for each word of the texts.

    Args:
        texts: n texts.
    """

    def __init__(self, texts: Sequence[str]):
        self.count = len(texts)
        hashes, owners = run_hashes(texts)
        order = np.argsort(hashes, kind="stable")
        self._hashes, self._owners = hashes[order], owners[order]

    def shared(self, texts: Iterable[str]) -> np.ndarray:
        """`[n]` bool: which of the n texts share a run with any of these, which are read once and not kept."""
        hit = np.zeros(len(self._hashes), bool)
        texts = iter(texts)
        while chunk := list(islice(texts, _TEXTS_AT_ONCE)):
            found = np.unique(run_hashes(chunk)[0])
            places = np.searchsorted(found, self._hashes)
            inside = places < len(found)
            hit[inside] |= found[places[inside]] == self._hashes[inside]
        shared = np.zeros(self.count, bool)
        shared[self._owners[hit]] = True
        return shared


def run_hashes(texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Hashes of the runs of `RUN` words of each text, and the place of the text that each is from, both `[runs]`.

    The words are lower-cased, without punctuation. Equal runs have equal hashes within this process; different ones
    have, by chance, about one time in 2**64.
    """
    parts = [words(text) for text in texts]
    owner = np.repeat(np.arange(len(texts)), [len(part) for part in parts])
    hashes = np.array([hash(word) for part in parts for word in part], np.int64).astype(np.uint64)
    count = max(0, len(hashes) - RUN + 1)
    found = np.zeros(count, np.uint64)
    for place in range(RUN):
        # A polynomial of the words' hashes, modulo 2**64 by overflow.
        found = found * np.uint64(0x9E3779B97F4A7C15) + hashes[place : place + count]
    within = owner[:count] == owner[RUN - 1 :] if count else np.zeros(0, bool)
    return found[within], owner[:count][within]


def _with_own_profiles(workspace: Workspace, held_out: pa.Table) -> int | None:
    """How many references share a run with a profile of their own pair."""
    profiles = {}
    for side in _PAIR:
        table = f"{side}_profiles"
        if workspace.has_table(workspace.text_stage(table), table):
            rows = workspace.read_text_table(table)
            rows = rows.filter(pc.equal(rows["status"], "ok"))
            profiles[side] = (
                held_out.select([side])
                .append_column("row", pa.array(np.arange(len(held_out))))
                .join(rows.select([side, "profile"]), keys=[side], join_type="inner")
            )
    if not profiles:
        return None
    own_hashes, own_rows = run_hashes(held_out["explanation"].to_pylist())
    shared = np.zeros(len(held_out), bool)
    for joined in profiles.values():
        rows = joined["row"].to_numpy()
        for start in range(0, len(rows), _TEXTS_AT_ONCE):
            chunk = slice(start, start + _TEXTS_AT_ONCE)
            hashes, owners = run_hashes(joined["profile"][chunk].to_pylist())
            # A row's number in the hash: only runs of the same pair are equal.
            mixed = _mix(hashes, rows[chunk][owners])
            hit = np.isin(_mix(own_hashes, own_rows), mixed)
            shared[own_rows[hit]] = True
    return int(shared.sum())


def _mix(hashes: np.ndarray, rows: np.ndarray) -> np.ndarray:
    return hashes ^ (rows.astype(np.uint64) * np.uint64(0xD6E8FEB86659FD93))


def _texts(column: pa.ChunkedArray) -> Iterator[str]:
    for chunk in column.chunks:
        for start in range(0, len(chunk), _TEXTS_AT_ONCE):
            yield from chunk.slice(start, _TEXTS_AT_ONCE).to_pylist()


def _normal(text: str) -> str:
    return " ".join(words(text))


def _training_reviews(workspace: Workspace) -> Iterator[str]:
    """Texts of the reviews that training stages may read: of training pairs that no explanation holds out."""
    with Database(workspace, _MEMORY, None, None) as database:
        tables = {
            name: f"{database.parquet('preprocess', name)} AS {name}"
            for name in ("users", "items_index", "interactions")
        }
        database.view("data", "reviews", {"user_id": "VARCHAR", "item_id": "VARCHAR", "text": "VARCHAR"})
        held_out = ""
        if workspace.has_table("preprocess", "explanations"):
            explanations = database.parquet("preprocess", "explanations")
            held_out = f"""AND ("user", item) NOT IN
                (SELECT ("user", item) FROM {explanations} WHERE split IN ('val', 'test'))"""
        query = f"""SELECT text FROM reviews JOIN {tables["users"]} USING (user_id)
            JOIN {tables["items_index"]} USING (item_id) JOIN {tables["interactions"]} USING ("user", item)
            WHERE split = 'train' AND trim(text) <> '' {held_out}"""
        yield from (row["text"] for row in database.stream(query))
