"""From texts to batches: encoded rows, left padding, and the plan of which rows make which step.

The plan is a pure function of (seed, epoch, lengths, batch size): every worker computes the same one and takes its rows
of each batch, so the steps are the same steps whatever the number of workers. `tuning_data.py` reads the rows,
`tuning.py` trains on the batches.

Shapes: B rows, T tokens, N nodes, D embedding width.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch

from xrec.config import ConfigError
from xrec.explainer.model import IGNORED
from xrec.explainer.prompt import Prompt, PromptBuilder

# Batches are cut from stretches of this many shuffled batches, sorted by length: little padding, much randomness.
_STRETCH = 32


@dataclass(frozen=True, slots=True)
class Row:
    """One encoded training text.

    Attributes:
        user, item: node indices; -1 where the prompt has no such side.
        token_ids: `[T]` int32, the prompt and then the target.
        target_length: trailing tokens that are to be predicted, the end-of-sequence token among them.
        user_positions, item_positions: indices into `token_ids` where vectors go.
    """

    user: int
    item: int
    token_ids: np.ndarray
    target_length: int
    user_positions: tuple[int, ...]
    item_positions: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.token_ids)


@dataclass(frozen=True)
class Batch:
    """Rows side by side, left padded: the arguments of `XRecModel.forward`, by name.

    Attributes:
        input_ids, attention_mask: `[B, T]`.
        user_mask, item_mask: `[B, T]` bool.
        user, item: `[B, D]` graph embeddings; zero where a row has no such side.
        labels: `[B, T]`; -100 on pads and prompt.
    """

    input_ids: torch.Tensor
    attention_mask: torch.Tensor
    user_mask: torch.Tensor
    item_mask: torch.Tensor
    user: torch.Tensor
    item: torch.Tensor
    labels: torch.Tensor

    def to(self, device: torch.device | str) -> "Batch":
        return Batch(**{name: value.to(device) for name, value in self.tensors().items()})

    def tensors(self) -> dict[str, torch.Tensor]:
        return {f.name: getattr(self, f.name) for f in fields(self)}


class RowEncoder:
    """Turns texts into rows of at most `max_length` tokens.

    Prompts are cut by their builder, without regard to what follows; a row whose target then does not fit is left out.

    Args:
        builder: the prompt template.
        max_length: longest row, in tokens.
    """

    def __init__(self, builder: PromptBuilder, max_length: int):
        self.builder, self.max_length = builder, max_length

    def explanation(
        self, user: int, item: int, title: str, user_profile: str | None, item_profile: str | None, text: str
    ) -> Row | None:
        """The row that teaches why `user` enjoys `item`; None where it does not fit."""
        return self._row(user, item, self.builder.explain(title, user_profile, item_profile), text)

    def description(self, text: str, user: int = -1, item: int = -1) -> Row | None:
        """The warm-up row that puts one node's embedding into words; None where it does not fit.

        Raises:
            ValueError: both sides are given, or none.
        """
        if (user < 0) == (item < 0):
            raise ValueError(f"user = {user}, item = {item}: a description is of one node; give one of the two")
        return self._row(user, item, self.builder.describe("user" if user >= 0 else "item"), text)

    def _row(self, user: int, item: int, prompt: Prompt, text: str) -> Row | None:
        target = self.builder.target(text)
        if len(prompt.token_ids) + len(target) > self.max_length:
            return None
        ids = np.asarray([*prompt.token_ids, *target], dtype=np.int32)
        return Row(user, item, ids, len(target), tuple(prompt.user_positions), tuple(prompt.item_positions))


def check_context(max_length: int, backbone: Any) -> None:
    """Refuse rows that may be longer than the backbone's context, where it has a limit.

    Args:
        max_length: longest row, in tokens.
        backbone: the Hugging Face config of the backbone.

    Raises:
        ConfigError: naming both lengths.
    """
    context = getattr(backbone.get_text_config(), "max_position_embeddings", None)
    if context is not None and max_length > context:
        raise ConfigError(
            f"tune.max_length = {max_length}, but the backbone reads at most {context} tokens (its "
            f"max_position_embeddings); set tune.max_length to {context} or less and tune.prompt.max_tokens below that"
        )


def collate(rows: Sequence[Row], user: torch.Tensor, item: torch.Tensor, pad_id: int) -> Batch:
    """Pad rows on the left and look up their embeddings.

    Args:
        rows: at least one.
        user, item: `[N, D]` embeddings of all nodes of either side.
        pad_id: the id at padded positions, which no position attends to.
    """
    width = max(len(row) for row in rows)
    shape = (len(rows), width)
    input_ids, labels = torch.full(shape, pad_id), torch.full(shape, IGNORED)
    attention_mask = torch.zeros(shape, dtype=torch.long)
    user_mask, item_mask = torch.zeros(shape, dtype=torch.bool), torch.zeros(shape, dtype=torch.bool)
    for i, row in enumerate(rows):
        start = width - len(row)
        ids = torch.from_numpy(row.token_ids).long()
        input_ids[i, start:] = ids
        attention_mask[i, start:] = 1
        labels[i, width - row.target_length :] = ids[len(row) - row.target_length :]
        user_mask[i, [start + p for p in row.user_positions]] = True
        item_mask[i, [start + p for p in row.item_positions]] = True
    users, items = _look_up(user, [row.user for row in rows]), _look_up(item, [row.item for row in rows])
    return Batch(input_ids, attention_mask, user_mask, item_mask, users, items, labels)


def _look_up(embeddings: torch.Tensor, nodes: list[int]) -> torch.Tensor:
    index = torch.tensor(nodes)
    return embeddings[index.clamp(min=0)] * (index >= 0).unsqueeze(1)


def plan_epoch(lengths: Sequence[int], batch_size: int, seed: int, epoch: int) -> list[np.ndarray]:
    """Which rows make which step of an epoch: every row once, rows of like length together, steps in random order.

    Args:
        lengths: tokens of each row.
        batch_size: rows a step, over all workers; one step has fewer where the rows don't divide.
        seed, epoch: the same pair gives the same plan.

    Returns:
        One int64 array of row numbers a step, shortest row first.
    """
    generator = np.random.default_rng([seed, epoch])
    order, sizes = generator.permutation(len(lengths)), np.asarray(lengths)
    batches = []
    for start in range(0, len(order), batch_size * _STRETCH):
        stretch = order[start : start + batch_size * _STRETCH]
        stretch = stretch[np.argsort(sizes[stretch], kind="stable")]
        batches += [stretch[i : i + batch_size] for i in range(0, len(stretch), batch_size)]
    return [batches[i] for i in generator.permutation(len(batches))]


def plan_in_order(lengths: Sequence[int], batch_size: int) -> list[np.ndarray]:
    """Every row once, sorted by length and nothing left to chance: the plan of a validation."""
    order = np.argsort(np.asarray(lengths), kind="stable")
    return [order[i : i + batch_size] for i in range(0, len(order), batch_size)]


def micro_batches(step: np.ndarray, rank: int, world: int, size: int | None = None) -> list[tuple[np.ndarray, bool]]:
    """A worker's share of a step, in pieces of at most `size` rows.

    Every worker gets the same number of pieces, because ZeRO's collectives must be called equally often on all. Where a
    worker has no rows left for a piece, it gets the step's first row, marked as not counting.

    Args:
        step: the row numbers of the step, as `plan_epoch` gives them.
        rank, world: this worker and how many there are.
        size: rows a worker holds at once; None: its whole share.

    Returns:
        (row numbers, whether they count) a piece.
    """
    share = math.ceil(len(step) / world)
    size = min(size or share, share)
    mine = step[rank::world]
    pieces = [mine[i : i + size] for i in range(0, share, size)]
    return [(piece, True) if len(piece) else (step[:1], False) for piece in pieces]
