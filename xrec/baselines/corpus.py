"""What the baselines read: the explained pairs of the training and validation splits, as token ids.

The tokenizer is trained on training texts alone. Of validation and test pairs nothing is read here but the validation
rows themselves, which decide when to stop; which pairs are explained afterwards is `ray_jobs/baseline.py`'s business.
Shapes: B rows, T tokens, F tokens of a feature, n rows in all.
"""

# pyright: reportAttributeAccessIssue=false
# (pyarrow.compute makes its functions at import, where pyright cannot see them)
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch

from xrec.explainer.model import IGNORED
from xrec.explainer.pairs import explained_pairs
from xrec.workspace import Workspace

MAX_TOKENS = 160


@dataclass
class Batch:
    """Rows as tensors.

    Attributes:
        user, item: `[B]` int64 indices.
        inputs: `[B, T]` the beginning of sequence and the text's tokens; any token where a row has ended.
        labels: `[B, T]` the text's tokens and the end of sequence; `IGNORED` where a row has ended.
        rating: `[B]` float32, NaN where unknown.
        feature: `[B, F]` token ids.
        feature_mask: `[B, F]` bool, where they are.
    """

    user: torch.Tensor
    item: torch.Tensor
    inputs: torch.Tensor
    labels: torch.Tensor
    rating: torch.Tensor
    feature: torch.Tensor
    feature_mask: torch.Tensor

    @property
    def tokens(self) -> int:
        """How many labels count."""
        return int((self.labels != IGNORED).sum())


@dataclass
class Rows:
    """Explained pairs.

    Attributes:
        user, item: `[n]` int64 indices.
        text: token ids of each explanation without beginning and end; empty where it is yet to be written.
        rating: `[n]` float32, NaN where unknown.
        feature: token ids of each row's feature; empty lists where a system gets none.
    """

    user: np.ndarray
    item: np.ndarray
    text: list[list[int]]
    rating: np.ndarray
    feature: list[list[int]]

    def __len__(self) -> int:
        return len(self.user)

    @property
    def lengths(self) -> list[int]:
        return [len(text) for text in self.text]

    def batch(self, chosen: np.ndarray | slice, tokenizer: Any, device: torch.device | str = "cpu") -> Batch:
        """The chosen rows, padded on the right."""
        numbers = np.arange(len(self))[chosen]
        texts = [self.text[n][:MAX_TOKENS] for n in numbers]
        begin, end = tokenizer.bos_token_id, tokenizer.eos_token_id
        inputs = padded([[begin, *text] for text in texts], end)
        # A text that had to be cut does not end there.
        ends = [[end] if len(self.text[n]) <= MAX_TOKENS else [IGNORED] for n in numbers]
        labels = padded([[*text, *last] for text, last in zip(texts, ends, strict=True)], IGNORED)
        features = [self.feature[n] for n in numbers]
        batch = Batch(
            torch.from_numpy(self.user[numbers]),
            torch.from_numpy(self.item[numbers]),
            inputs,
            labels,
            torch.from_numpy(self.rating[numbers]),
            padded(features, end),
            padded([[1] * len(f) for f in features], 0).bool(),
        )
        return Batch(**{name: value.to(device) for name, value in vars(batch).items()})


@dataclass
class Texts:
    """The explained pairs of the two splits that training may see, as tables user, item, explanation, feature."""

    train: pa.Table
    validation: pa.Table

    @classmethod
    def load(cls, workspace: Workspace) -> "Texts":
        """Read a workspace's explanations; there may be none for validation.

        Raises:
            WorkspaceError: the training split has none.
        """
        train = explained_pairs(workspace, "train")
        splits = workspace.read_text_table("explanations")
        usable = splits.filter(pc.equal(splits["status"], "ok"))["split"].unique().to_pylist()
        return cls(train, explained_pairs(workspace, "val") if "val" in usable else train.slice(0, 0))


def padded(sequences: Sequence[Sequence[int]], fill: int) -> torch.Tensor:
    """`[B, T]` int64, T the longest sequence's length."""
    width = max(map(len, sequences), default=0)
    values = [[*s, *[fill] * (width - len(s))] for s in sequences]
    return torch.tensor(values, dtype=torch.long).reshape(len(sequences), width)


def encode(texts: Sequence[str], tokenizer: Any) -> list[list[int]]:
    """Token ids of each text, without special tokens."""
    return tokenizer(list(texts), add_special_tokens=False)["input_ids"] if len(texts) else []


def new_rows(
    pairs: pa.Table,
    tokenizer: Any,
    texts: Sequence[str] | None = None,
    ratings: np.ndarray | None = None,
    features: Sequence[str] | None = None,
) -> Rows:
    """Rows for pairs.

    Args:
        pairs: columns user and item, n rows.
        tokenizer: of the system.
        texts, ratings, features: n each; left out where the system gets none.
    """
    count = len(pairs)
    return Rows(
        pairs["user"].to_numpy().astype(np.int64),
        pairs["item"].to_numpy().astype(np.int64),
        encode(texts, tokenizer) if texts is not None else [[] for _ in range(count)],
        ratings if ratings is not None else np.full(count, np.nan, dtype=np.float32),
        # As inside a sentence, where tokens of a word begin with the space before it.
        encode([f" {f}" for f in features], tokenizer) if features is not None else [[] for _ in range(count)],
    )


def read_ratings(workspace: Workspace, pairs: pa.Table) -> np.ndarray:
    """`[n]` float32, the rating that came with each pair's latest review; NaN where there is none.

    Args:
        pairs: columns user and item; ratings of no other pair are returned.
    """
    unknown = np.full(len(pairs), np.nan, dtype=np.float32)
    if not workspace.has_table("data", "reviews"):
        return unknown
    columns = ["user_id", "item_id", "rating", "timestamp"]
    reviews = workspace.read_table("data", "reviews", columns=columns)
    reviews = reviews.filter(pc.is_valid(reviews["rating"]))
    if not len(reviews):
        return unknown
    reviews = reviews.sort_by([("timestamp", "ascending")])
    ids = {}
    for side, table in (("user", "users"), ("item", "items_index")):
        known = workspace.read_table("preprocess", table).sort_by(side)[f"{side}_id"]
        ids[side] = known.take(pairs[side]).to_pylist()
    wanted = {pair: row for row, pair in enumerate(zip(ids["user"], ids["item"], strict=True))}
    found = zip(*(reviews[c].to_pylist() for c in ("user_id", "item_id", "rating")), strict=True)
    for user, item, rating in found:
        row = wanted.get((user, item))
        if row is not None:
            unknown[row] = rating
    return unknown
