"""The Hugging Face engine: batched generation and likelihoods with injected vectors, on a CPU or a GPU.

The prompt pass injects; later steps read the injected keys and values from the cache. Finished rows leave the batch.
What a request means is `engine.py`'s business. Shapes: B rows, T tokens, V vocabulary.
"""

import asyncio
import itertools
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import DynamicCache, LogitsProcessorList, TemperatureLogitsWarper, TopPLogitsWarper

from xrec.explainer.engine import (
    FinishReason,
    Request,
    Result,
    Sampling,
    check_request,
    complete_sentences,
    end_ids,
    finish,
)
from xrec.explainer.injection import Injection
from xrec.explainer.model import IGNORED, InjectedBackbone, positions_of, token_losses
from xrec.explainer.prompt import reserved_token_id


@dataclass
class _Row:
    """One explanation in the making."""

    sampling: Sampling
    generator: torch.Generator | None
    token_ids: list[int] = field(default_factory=list)
    text: str = ""
    finish_reason: FinishReason | None = None


class HuggingFaceEngine:
    """Runs any Hugging Face decoder.

    Args:
        backbone, tokenizer: from `load_backbone`.
        injection, input_replacement: as the adapter was tuned.
        batch_size: requests generated together.
    """

    def __init__(
        self,
        backbone: Any,
        tokenizer: Any,
        injection: Injection = "input",
        input_replacement: bool = True,
        batch_size: int = 64,
    ):
        self.model = InjectedBackbone(backbone, injection, input_replacement)
        self.tokenizer = tokenizer
        self.batch_size = batch_size
        self.reserved_id = reserved_token_id(tokenizer)
        settings = backbone.generation_config
        self.end_ids = end_ids(tokenizer, settings.eos_token_id if settings else None)

    def generate(self, requests: Sequence[Request]) -> list[Result]:
        """Explanations, in the order of the requests; see `Engine.generate`."""
        rows = self._checked_rows(requests)
        for chunk in self._chunks(requests):
            for _ in self._steps([requests[i] for i in chunk], [rows[i] for i in chunk]):
                pass
        return [Result(r.text, r.token_ids, r.finish_reason or "length") for r in rows]

    async def stream(self, request: Request) -> AsyncIterator[str]:
        """Pieces of one explanation, a whole sentence at a time, since only a whole one can't be cut back."""
        (row,) = self._checked_rows([request])
        steps, sent = self._steps([request], [row]), 0
        while await asyncio.to_thread(next, steps, None) is not None:
            ready = len(row.text) if row.finish_reason else len(complete_sentences(row.text))
            if ready > sent:
                yield row.text[sent:ready]
                sent = ready

    @torch.inference_mode()
    def logprobs(self, requests: Sequence[Request], targets: Sequence[list[int]]) -> list[torch.Tensor]:
        """Log-probabilities of the targets' tokens; see `Engine.logprobs`."""
        if len(requests) != len(targets):
            raise ValueError(f"{len(requests)} requests but {len(targets)} targets; give one target a request")
        self._checked_rows(requests)
        results: list[torch.Tensor] = [torch.empty(0)] * len(requests)
        for chunk in self._chunks(requests):
            lengths = [len(targets[i]) for i in chunk]
            keep = max(lengths, default=0)
            if keep == 0:
                continue
            batch = self._batch([requests[i] for i in chunk], [targets[i] for i in chunk])
            logits = self.model(**batch, last=keep + 1, use_cache=False).logits
            labels = torch.full((len(chunk), keep), IGNORED, device=logits.device)
            for row, i in enumerate(chunk):
                if targets[i]:
                    labels[row, -len(targets[i]) :] = torch.tensor(targets[i], device=logits.device)
            losses = token_losses(logits[:, :-1], labels).cpu()
            for row, i in enumerate(chunk):
                results[i] = -losses[row, keep - lengths[row] :]
        return results

    def close(self) -> None:
        """Nothing: it has no process of its own."""

    # ------------------------------------------------------------------------------------------------------------

    def _checked_rows(self, requests: Sequence[Request]) -> list[_Row]:
        rows = []
        for index, request in enumerate(requests):
            check_request(request, index, self.model.hidden_size, self.reserved_id)
            sampling, generator = request.sampling, None
            if sampling.temperature > 0:
                generator = torch.Generator().manual_seed(sampling.seed)
            rows.append(_Row(sampling, generator))
        return rows

    def _chunks(self, requests: Sequence[Request]) -> Iterator[list[int]]:
        """Indices of requests of similar length, a batch at a time."""
        order = sorted(range(len(requests)), key=lambda i: len(requests[i].token_ids))
        for start in range(0, len(order), self.batch_size):
            yield order[start : start + self.batch_size]

    def _batch(self, requests: list[Request], targets: list[list[int]] | None = None) -> dict[str, torch.Tensor]:
        """Left-padded tensors for prompts, each followed by its target if given."""
        sequences = [r.token_ids + (targets[i] if targets else []) for i, r in enumerate(requests)]
        rows, width = len(requests), max(map(len, sequences))
        pad = self.tokenizer.pad_token_id if self.tokenizer.pad_token_id is not None else self.end_ids[0]
        input_ids = torch.full((rows, width), pad)
        attention = torch.zeros((rows, width), dtype=torch.long)
        masks = {side: torch.zeros((rows, width), dtype=torch.bool) for side in ("user", "item")}
        vectors = {side: torch.zeros((rows, self.model.hidden_size)) for side in ("user", "item")}
        for row, (request, sequence) in enumerate(zip(requests, sequences, strict=True)):
            offset = width - len(sequence)
            input_ids[row, offset:] = torch.tensor(sequence)
            attention[row, offset:] = 1
            for side in ("user", "item"):
                vector = getattr(request, f"{side}_vector")
                if vector is not None:
                    masks[side][row, [offset + p for p in getattr(request, f"{side}_positions")]] = True
                    vectors[side][row] = vector
        batch = {
            "input_ids": input_ids,
            "attention_mask": attention,
            "user_mask": masks["user"],
            "item_mask": masks["item"],
            "user": vectors["user"],
            "item": vectors["item"],
        }
        return {name: value.to(self.model.device) for name, value in batch.items()}

    def _steps(self, requests: list[Request], rows: list[_Row]) -> Iterator[int]:
        """Generate one token a step for every unfinished row, yielding how many rows remain."""
        active = list(rows)
        batch, cache = self._batch(requests), DynamicCache(config=self.model.backbone.config)
        attention = batch["attention_mask"]
        with torch.inference_mode():
            logits = self.model(**batch, last=1, use_cache=True, past_key_values=cache).logits[:, -1]
        for _ in itertools.count():
            tokens = self._choose(logits, active)
            self._advance(active, tokens)
            remaining = [i for i, row in enumerate(active) if row.finish_reason is None]
            yield len(remaining)
            if not remaining:
                return
            if len(remaining) < len(active):
                active = [active[i] for i in remaining]
                kept = torch.tensor(remaining, device=attention.device)
                cache.batch_select_indices(kept)
                attention, tokens = attention[kept], tokens[kept]
            attention = torch.cat([attention, attention.new_ones(len(active), 1)], dim=1)
            with torch.inference_mode():
                logits = self.model.backbone(
                    input_ids=tokens.unsqueeze(1),
                    attention_mask=attention,
                    position_ids=positions_of(attention)[:, -1:],
                    past_key_values=cache,
                    use_cache=True,
                ).logits[:, -1]

    @torch.inference_mode()
    def _choose(self, logits: torch.Tensor, rows: list[_Row]) -> torch.Tensor:
        """The next token of each row, `[B]`; the reserved id is never one."""
        logits = logits.float()
        logits[:, self.reserved_id] = float("-inf")
        tokens = logits.argmax(-1)
        for i, row in enumerate(rows):
            if row.generator is not None:
                warped = _warpers(row.sampling)(torch.empty(0, dtype=torch.long), logits[i : i + 1])  # pyright: ignore
                probabilities = warped.softmax(-1).cpu()
                tokens[i] = torch.multinomial(probabilities, 1, generator=row.generator)[0, 0]
        return tokens

    def _advance(self, rows: list[_Row], tokens: torch.Tensor) -> None:
        for row, token in zip(rows, tokens.tolist(), strict=True):
            row.token_ids.append(token)
        texts = self.tokenizer.batch_decode([r.token_ids for r in rows], skip_special_tokens=True)
        for row, text in zip(rows, texts, strict=True):
            ended = row.token_ids[-1] in self.end_ids
            row.text, row.finish_reason = finish(text, ended, len(row.token_ids), row.sampling)


def _warpers(sampling: Sampling) -> LogitsProcessorList:
    warpers: list[Any] = [TemperatureLogitsWarper(sampling.temperature)]
    if sampling.top_p < 1:
        warpers.append(TopPLogitsWarper(sampling.top_p))
    return LogitsProcessorList(warpers)
