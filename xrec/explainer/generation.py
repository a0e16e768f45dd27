"""The Hugging Face engine: batched generation and likelihoods with injected vectors, on a CPU or a GPU.

How a batch grows is `running_batch.py`'s business, what a request means `engine.py`'s, and requests that come one by
one `continuous_batching.py`'s.
"""

import asyncio
from collections.abc import AsyncIterator, Iterator, Sequence
from typing import Any

import torch

from xrec.explainer.engine import Progress, Request, Result, check_request, end_ids, sentences
from xrec.explainer.injection import Injection
from xrec.explainer.model import IGNORED, InjectedBackbone, token_losses
from xrec.explainer.prompt import reserved_token_id
from xrec.explainer.running_batch import Row, RunningBatch


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
        rows = self.rows(requests)
        for chunk in self._chunks(requests):
            batch = self.start([rows[i] for i in chunk])
            while batch.rows:
                batch.step()
        return [row.result() for row in rows]

    async def stream(self, request: Request) -> AsyncIterator[str]:
        """Pieces of one explanation, a whole sentence at a time, since only a whole one can't be cut back."""
        (row,) = self.rows([request])

        async def progress() -> AsyncIterator[Progress]:
            batch = await asyncio.to_thread(self.start, [row])
            while batch.rows:
                yield Progress(row.text)
                await asyncio.to_thread(batch.step)
            yield Progress(row.text, row.result())

        async for piece in sentences(progress()):
            yield piece

    @torch.inference_mode()
    def logprobs(self, requests: Sequence[Request], targets: Sequence[list[int]]) -> list[torch.Tensor]:
        """Log-probabilities of the targets' tokens; see `Engine.logprobs`."""
        if len(requests) != len(targets):
            raise ValueError(f"{len(requests)} requests but {len(targets)} targets; give one target a request")
        self.rows(requests)
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

    def rows(self, requests: Sequence[Request]) -> list[Row]:
        """Check requests and make each a row to be generated.

        Raises:
            ValueError: a request is malformed; nothing is generated.
        """
        for index, request in enumerate(requests):
            check_request(request, index, self.model.hidden_size, self.reserved_id)
        return [Row(request) for request in requests]

    def start(self, rows: Sequence[Row]) -> RunningBatch:
        """Read the prompts of new rows and generate the first token of each."""
        inputs = self._batch([row.request for row in rows])
        return RunningBatch(self.model, self.tokenizer, self.end_ids, self.reserved_id, inputs, rows)

    # ------------------------------------------------------------------------------------------------------------

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
