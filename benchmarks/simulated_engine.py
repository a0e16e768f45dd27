"""An engine of a known speed: it sleeps a fixed time a row instead of running a language model.

Everything before and behind it is real: prompts, tokens, vectors, words counted and cut. Name it in the settings as
`benchmarks.simulated_engine:SimulatedEngine`; `explain.compute.engine_arguments` takes `milliseconds`, a row.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from typing import Any

import torch

from xrec.explainer.custom_engine import EngineSetup
from xrec.explainer.engine import Request, Result, check_request, finish
from xrec.explainer.prompt import reserved_token_id

_TEXT = "The user will enjoy this place for its fresh bread, its warm rooms and the quiet garden behind the house."


class SimulatedEngine:
    """Answers every request with the same sentence and a number of its own, after a fixed time."""

    def __init__(self, setup: EngineSetup):
        self.tokenizer: Any = setup.tokenizer
        self.hidden_size = setup.spec.hidden_size
        self.seconds = float(setup.config.compute.engine_arguments.get("milliseconds", 1.0)) / 1000
        self.reserved_id = reserved_token_id(self.tokenizer)
        self.token_ids = self.tokenizer(_TEXT, add_special_tokens=False)["input_ids"]

    def generate(self, requests: Sequence[Request]) -> list[Result]:
        """The sentence for each request, and how long its prompt is; the call takes its time for each of them."""
        began = time.monotonic()
        for index, request in enumerate(requests):
            check_request(request, index, self.hidden_size, self.reserved_id)
        results = [self._result(request) for request in requests]
        # A real engine checks and counts while its device computes: that is not on top.
        time.sleep(max(0.0, self.seconds * len(requests) - (time.monotonic() - began)))
        return results

    async def stream(self, request: Request) -> AsyncIterator[str]:
        """The whole sentence, as one piece."""
        (result,) = await asyncio.to_thread(self.generate, [request])
        yield result.text

    def logprobs(self, requests: Sequence[Request], targets: Sequence[list[int]]) -> list[torch.Tensor]:
        """Every token equally likely."""
        time.sleep(self.seconds * len(requests))
        return [torch.full((len(target),), -float(torch.tensor(len(self.tokenizer)).log())) for target in targets]

    def close(self) -> None:
        """Nothing: it has no process of its own."""

    def _result(self, request: Request) -> Result:
        text, reason = finish(f"{_TEXT} It read {len(request.token_ids)} tokens.", True, 32, request.sampling)
        return Result(text, self.token_ids, reason or "stop")
