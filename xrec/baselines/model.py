"""What the trained baselines have in common: sizes, the methods that training and generation call, the text's loss.

Shapes: B rows, T tokens, V vocabulary.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from xrec.baselines.corpus import Batch
from xrec.explainer.model import IGNORED

RATING_WEIGHT = 0.1


@dataclass(frozen=True)
class Ratings:
    """The training ratings of a workspace that has some.

    Attributes:
        mean, low, high: over the training explanations' pairs.
    """

    mean: float
    low: float
    high: float


@dataclass(frozen=True)
class Shape:
    """All that determines a system's parameters.

    Attributes:
        users, items: nodes of the workspace.
        known_users, known_items: how many of them have training explanations.
        vocabulary: V.
        hidden, layers, heads, dropout: as in the settings.
        ratings: None where the data has none, or the system asks for none.
    """

    users: int
    items: int
    known_users: int
    known_items: int
    vocabulary: int
    hidden: int
    layers: int
    heads: int
    dropout: float
    ratings: Ratings | None = None


class ExplanationModel(nn.Module):
    """A system that writes a text for a user and an item, token by token."""

    def losses(self, batch: Batch) -> dict[str, torch.Tensor]:
        """Scalars of a batch: `total`, which training lowers; `text`, in nats a token; and the other terms of `total`.

        A term that the batch has nothing for is absent.
        """
        raise TypeError(f"{type(self).__name__} has no losses")

    def begin(self, batch: Batch) -> tuple[torch.Tensor, Any]:
        """`[B, V]` logits of each row's first token, and what `advance` needs; the batch's texts are not read."""
        raise TypeError(f"{type(self).__name__} does not generate")

    def advance(self, tokens: torch.Tensor, state: Any) -> tuple[torch.Tensor, Any]:
        """`[B, V]` logits of the tokens after `tokens` `[B]`, and the next state."""
        raise TypeError(f"{type(self).__name__} does not generate")


def text_loss(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Mean negative log-likelihood, in nats, of the labels `[B, T]` that count, under logits `[B, T, V]`."""
    return nn.functional.cross_entropy(logits.flatten(0, 1).float(), labels.flatten(), ignore_index=IGNORED)


def rating_loss(predicted: torch.Tensor, ratings: torch.Tensor) -> torch.Tensor | None:
    """Mean squared error of `[B]` predictions over the rows whose rating is known; None where no row's is."""
    known = ~ratings.isnan()
    return (predicted - ratings)[known].square().mean() if known.any() else None
