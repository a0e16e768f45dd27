"""Explanations that grow together: a row each, a token a step; rows join between steps and leave when they end.

The prompt pass injects; later steps read the injected keys and values from the cache. Who waits, and which rows join
when, is the business of `generation.py` and `continuous_batching.py`.

Shapes: B rows, T tokens, W columns of the cache, V vocabulary.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import DynamicCache, LogitsProcessorList, TemperatureLogitsWarper, TopPLogitsWarper

from xrec.explainer.engine import FinishReason, Request, Result, finish
from xrec.explainer.kv_cache import can_merge, merge, select_rows
from xrec.explainer.model import InjectedBackbone


@dataclass(eq=False)
class Row:
    """One explanation in the making.

    Attributes:
        request: what was asked.
        token_ids: generated so far.
        text: what it has become; see `finish`.
        finish_reason: None while it goes on.
    """

    request: Request
    token_ids: list[int] = field(default_factory=list)
    text: str = ""
    finish_reason: FinishReason | None = None
    _generator: torch.Generator | None = None

    def __post_init__(self) -> None:
        if self.request.sampling.temperature > 0:
            self._generator = torch.Generator().manual_seed(self.request.sampling.seed)

    @property
    def cached(self) -> int:
        """Columns of the cache that are this row's: all its tokens but the newest."""
        return len(self.request.token_ids) + len(self.token_ids) - 1

    def result(self) -> Result:
        """What a finished row was generated for."""
        return Result(self.text, self.token_ids, self.finish_reason or "length")

    def choose(self, logits: torch.Tensor) -> int:
        """Draw a token from `[1, V]` logits by this request's own numbers."""
        sampling = self.request.sampling
        warpers: list[Any] = [TemperatureLogitsWarper(sampling.temperature)]
        if sampling.top_p < 1:
            warpers.append(TopPLogitsWarper(sampling.top_p))
        warped = LogitsProcessorList(warpers)(torch.empty(0, dtype=torch.long), logits)  # pyright: ignore
        return int(torch.multinomial(warped.softmax(-1).cpu(), 1, generator=self._generator))


class RunningBatch:
    """Rows that the model runs together. A new one has read its prompts and generated each row's first token.

    Args:
        model: the injecting backbone.
        tokenizer: its.
        end_ids: tokens that end a turn.
        reserved_id: never generated.
        inputs: the left-padded prompts, as `InjectedBackbone` takes them.
        rows: one a prompt; changed in place.

    Attributes:
        rows: the unfinished ones.
    """

    def __init__(
        self,
        model: InjectedBackbone,
        tokenizer: Any,
        end_ids: Sequence[int],
        reserved_id: int,
        inputs: dict[str, torch.Tensor],
        rows: Sequence[Row],
    ):
        self.rows = list(rows)
        self._model, self._tokenizer, self._end_ids, self._reserved_id = model, tokenizer, end_ids, reserved_id
        self._cache = DynamicCache(config=model.backbone.config)
        self._width = inputs["input_ids"].shape[1]
        with torch.inference_mode():
            output = self._model(**inputs, last=1, use_cache=True, past_key_values=self._cache)
            self._advance(output.logits[:, -1])

    @property
    def can_merge(self) -> bool:
        """Whether other rows can join before these have ended; see `kv_cache.can_merge`."""
        return can_merge(self._cache)

    @property
    def width(self) -> int:
        """Columns of the cache: those of the longest row, or where rows can't be merged, of the longest ever."""
        return self._width

    @torch.inference_mode()
    def step(self) -> None:
        """Generate one token for every row; the rows it ends leave."""
        device = self._model.device
        cached = torch.tensor([row.cached for row in self.rows], device=device).unsqueeze(1)
        self._width += 1
        output = self._model.backbone(
            input_ids=torch.tensor([row.token_ids[-1:] for row in self.rows], device=device),
            attention_mask=(torch.arange(self._width, device=device) >= self._width - 1 - cached).long(),
            position_ids=cached,
            past_key_values=self._cache,
            use_cache=True,
        )
        self._advance(output.logits[:, -1])

    @torch.inference_mode()
    def merge(self, other: "RunningBatch") -> None:
        """Take in the rows of another batch of the same model, which is of no use afterwards."""
        if other.rows:
            self._width = max(self._width, other.width)
            merge(self._cache, other._cache, self._width)
            self.rows += other.rows

    @torch.inference_mode()
    def keep(self, rows: Sequence[Row]) -> None:
        """Let go of all rows but these, and of the columns that only the others needed."""
        if len(rows) == len(self.rows) or not rows:
            self.rows = list(rows)
            return
        chosen = set(rows)
        kept = [index for index, row in enumerate(self.rows) if row in chosen]
        self.rows = [self.rows[index] for index in kept]
        if self.can_merge:
            self._width = max(row.cached for row in self.rows)
        select_rows(self._cache, torch.tensor(kept, device=self._model.device), self._width)

    def _advance(self, logits: torch.Tensor) -> None:
        """Give every row its next token, from `[B, V]` logits, and let the rows go that end with it."""
        logits = logits.float()
        logits[:, self._reserved_id] = float("-inf")
        for index, (row, best) in enumerate(zip(self.rows, logits.argmax(-1).tolist(), strict=True)):
            greedy = row.request.sampling.temperature == 0
            row.token_ids.append(best if greedy else row.choose(logits[index : index + 1]))
        texts = self._tokenizer.batch_decode([row.token_ids for row in self.rows], skip_special_tokens=True)
        for row, text in zip(self.rows, texts, strict=True):
            ended = row.token_ids[-1] in self._end_ids
            row.text, row.finish_reason = finish(text, ended, len(row.token_ids), row.request.sampling)
        self.keep([row for row in self.rows if row.finish_reason is None])
