"""Requests that come, and are cancelled, before given passes of a model that runs in another thread."""

import asyncio
import time

import torch

from xrec.explainer.continuous_batching import BatchedEngine
from xrec.explainer.generation import HuggingFaceEngine

TIMEOUT = 30


class Watch:
    """Sees every pass of the model in the model's thread, and acts before the pass of a given number.

    Attributes:
        masks: `[B, W]` of every pass.
        prompts: whether the pass read prompts.
        acts: what to do before a pass, by its number.
    """

    def __init__(self, engine: HuggingFaceEngine):
        self.masks: list[torch.Tensor] = []
        self.prompts: list[bool] = []
        self.acts: dict = {}
        self._forward = engine.model.backbone.forward
        engine.model.backbone.forward = self._watched

    def _watched(self, *args, **options):
        act = self.acts.pop(len(self.masks), None)
        self.masks.append(options["attention_mask"])
        self.prompts.append("inputs_embeds" in options)
        if act is not None:
            act()
        return self._forward(*args, **options)

    @property
    def rows(self) -> list[int]:
        return [len(mask) for mask, prompt in zip(self.masks, self.prompts, strict=True) if not prompt]


def on_loop(work) -> None:
    """Run a coroutine function on the test's loop from the model's thread, and wait for it."""
    asyncio.run_coroutine_threadsafe(work(), on_loop.loop).result(TIMEOUT)  # pyright: ignore


def until(condition) -> None:
    deadline = time.monotonic() + TIMEOUT
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.001)


def fail() -> None:
    raise MemoryError("none left")


async def settle() -> None:
    """Let what was begun or cancelled take effect."""
    for _ in range(5):
        await asyncio.sleep(0)


async def arriving(batched: BatchedEngine, watch: Watch, arrivals: dict, cancellations: dict) -> dict:
    """Send requests before given passes of the model and cancel them before others; the results of the rest."""
    on_loop.loop = asyncio.get_running_loop()
    tasks: dict[int, asyncio.Task] = {}
    done = asyncio.Event()

    def at(number: int):
        async def work() -> None:
            for key, request in arrivals.get(number, {}).items():
                tasks[key] = asyncio.create_task(batched.complete(request))
            for key in cancellations.get(number, []):
                tasks[key].cancel()
            await settle()
            if number == max(arrivals):
                done.set()

        return work

    for number in sorted({*arrivals, *cancellations} - {0}):
        watch.acts[number] = lambda number=number: on_loop(at(number))
    await at(0)()
    await asyncio.wait_for(done.wait(), TIMEOUT)
    results = await asyncio.wait_for(asyncio.gather(*tasks.values(), return_exceptions=True), TIMEOUT)
    return dict(zip(tasks, results, strict=True))
