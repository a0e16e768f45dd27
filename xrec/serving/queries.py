"""What passes between those who ask and those who answer: who the pair is, and what the model needs to explain it.

Shapes: H is the backbone's hidden size.
"""

from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

LiveSignal = Literal["true", "average", "off"]


@dataclass(frozen=True)
class UserQuery:
    """A user: a known one by id, or a new one by interactions.

    Attributes:
        user_id: the source's id; None for a new user.
        interactions: ids of the items that a new user interacted with.
        profile: a new user's, where there is one.
    """

    user_id: str | None = None
    interactions: tuple[str, ...] = ()
    profile: str | None = None


@dataclass(frozen=True)
class ItemQuery:
    """An item: a known one by id, or a new one by title and interactions.

    Attributes:
        item_id: the source's id; None for a new item.
        title: a new item's.
        interactions: ids of the users who interacted with a new item.
        profile: a new item's, where there is one.
    """

    item_id: str | None = None
    title: str = ""
    interactions: tuple[str, ...] = ()
    profile: str | None = None


@dataclass(frozen=True)
class PairInputs:
    """Everything an explainer needs for one pair.

    Attributes:
        user_vector, item_vector: `[H]` float32 adapted vectors; None switches the signal off.
        title, user_profile, item_profile: what the prompt quotes.
        prompt: the prompt settings that the adapter was tuned with.
        prompt_hash: of the template that it was tuned with; empty where unknown.
        backbone: identifies what the vectors are for: backbone hash, injection, input replacement.
        adapter_hash: of the adapter that made the vectors.
        cold_start: whether the user or the item is new.
    """

    user_vector: np.ndarray | None
    item_vector: np.ndarray | None
    title: str
    user_profile: str | None
    item_profile: str | None
    prompt: dict[str, Any]
    prompt_hash: str
    backbone: str
    adapter_hash: str
    cold_start: bool = False


@dataclass(frozen=True)
class ItemRow:
    """An item in a list.

    Attributes:
        score: inner product with the user's embedding in recommendations, cosine similarity in evidence; None in plain
            lists.
        interactions: how many users are known to have chosen it; None where that was not asked for.
    """

    item_id: str
    title: str
    score: float | None = None
    interactions: int | None = None


@dataclass(frozen=True)
class SimilarUser:
    """A user behind a vector.

    Attributes:
        similarity: cosine of the two users' embeddings.
        shared_items: items that both chose, a few.
    """

    user_id: str
    similarity: float
    shared_items: list[ItemRow] = field(default_factory=list)


@dataclass(frozen=True)
class Evidence:
    """What stands behind a pair's vectors.

    Attributes:
        score: inner product of the pair's embeddings.
        similar_users: those who chose the item and are nearest to the user.
        history: the user's own items nearest to the item.
    """

    score: float
    similar_users: list[SimilarUser]
    history: list[ItemRow]


@dataclass(frozen=True)
class UserDetails:
    """A known user.

    Attributes:
        history: the items of the training interactions.
        zero_shot: whether training has not seen this user.
    """

    user_id: str
    profile: str | None
    zero_shot: bool
    history: list[ItemRow]


@dataclass(frozen=True)
class Resolved:
    """Everything looked up for a list of pairs, from one snapshot.

    Attributes:
        dataset, snapshot, adapter_hash: where from.
        rows: the item of each pair.
        inputs: of each pair.
        averages: `[H]` the average user's vector for each pair, where evidence was asked for.
        evidence: of each pair, where it was asked for.
    """

    dataset: str
    snapshot: str
    adapter_hash: str
    rows: list[ItemRow]
    inputs: list[PairInputs]
    averages: list[np.ndarray | None]
    evidence: list[Evidence | None]


class RequestError(Exception):
    """A request that cannot be answered as it stands, in words that a client's program can read too.

    Args:
        status: HTTP status.
        code: for programs, such as `user_not_found`.
        message: for people: what is wrong with which value, and the remedy.
        field: the field of the query, such as `user_id` or `interactions.2`.
        index: which pair of a list it was; None where there is no list.
    """

    def __init__(self, status: int, code: str, message: str, field: str | None = None, index: int | None = None):
        super().__init__(status, code, message, field, index)
        self.status, self.code, self.message, self.field, self.index = status, code, message, field, index

    def __str__(self) -> str:
        return self.message
