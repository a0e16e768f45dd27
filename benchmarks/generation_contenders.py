"""The ways to generate that `generation.py` compares, each a function from requests to every one's generated tokens."""

import argparse
import asyncio
import itertools
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import psutil
import torch

from benchmarks.generation_world import MAX_LENGTH, without_injection
from xrec.explainer.engine import Request

Tokens = list[list[int]]


@dataclass
class Contender:
    """One way to generate.

    Attributes:
        run: asks for all requests at once.
        processes: that it runs in, beside this one.
        order: of the prompts that it is given.
        share: of the prompts that it is given.
        engine: to be closed; where it has `prompt_tokens` and `cached_tokens`, they are read.
    """

    run: Callable[[list[Request]], Tokens]
    processes: list[psutil.Process] = field(default_factory=list)
    order: str = "paper"
    share: float = 1.0
    engine: Any = None


def engine_arguments(given: argparse.Namespace) -> dict[str, Any]:
    return {
        "use_tqdm_on_load": False,
        "dtype": "float32",
        "max_model_len": MAX_LENGTH,
        "max_num_seqs": 64,
        "max_num_batched_tokens": 2048,
        "block_size": 32,
        "enable_prefix_caching": True,
        "disable_log_stats": True,
        "enforce_eager": not given.compiled,
    }


def ours(folder: str, given: argparse.Namespace, **changes: Any) -> Contender:
    from xrec.explainer.vllm_engine import VLLMEngine

    engine, processes = started(lambda: VLLMEngine(folder, **engine_arguments(given) | changes))
    return Contender(lambda requests: [r.token_ids for r in engine.generate(requests)], processes, engine=engine)


class PlainFrontEnd:
    """vLLM's AsyncLLM on an event loop in a thread of its own, asked for all prompts at once."""

    def __init__(self, folder: str, arguments: dict[str, Any]):
        self.loop, self.numbers = asyncio.new_event_loop(), itertools.count()
        threading.Thread(target=self.loop.run_forever, daemon=True).start()
        self.llm = self.run(self._start(folder, arguments))

    async def _start(self, folder: str, arguments: dict[str, Any]) -> Any:
        from vllm import AsyncEngineArgs
        from vllm.v1.engine.async_llm import AsyncLLM

        return AsyncLLM.from_engine_args(AsyncEngineArgs(model=folder, **arguments))

    def run(self, work: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self.loop).result()

    def generate(self, prompts: Tokens, sampling: Any) -> Tokens:
        return self.run(self._all(prompts, sampling))

    async def _all(self, prompts: Tokens, sampling: Any) -> Tokens:
        return await asyncio.gather(*[self._one(prompt, sampling) for prompt in prompts])

    async def _one(self, prompt: list[int], sampling: Any) -> list[int]:
        tokens: list[int] = []
        async for output in self.llm.generate({"prompt_token_ids": prompt}, sampling, str(next(self.numbers))):
            tokens = list(output.outputs[0].token_ids)
        return tokens

    def close(self) -> None:
        self.llm.shutdown()
        self.loop.call_soon_threadsafe(self.loop.stop)


def plain_sampling(given: argparse.Namespace) -> Any:
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind

    # Told of the end only: the least that a front end can do.
    return SamplingParams(temperature=0, max_tokens=given.tokens, output_kind=RequestOutputKind.FINAL_ONLY)


def plain(folder: str, tokenizer: Any, given: argparse.Namespace) -> Contender:
    engine, processes = started(lambda: PlainFrontEnd(folder, engine_arguments(given)))
    sampling = plain_sampling(given)
    return Contender(lambda r: engine.generate(without_injection(r, tokenizer), sampling), processes, engine=engine)


def plain_offline(folder: str, tokenizer: Any, given: argparse.Namespace) -> Contender:
    from vllm import LLM

    llm, processes = started(lambda: LLM(folder, **engine_arguments(given)))
    sampling = plain_sampling(given)

    def run(requests: list[Request]) -> Tokens:
        prompts: Any = [{"prompt_token_ids": ids} for ids in without_injection(requests, tokenizer)]
        return [list(o.outputs[0].token_ids) for o in llm.generate(prompts, sampling, use_tqdm=False)]

    return Contender(run, processes)


def hugging_face(folder: str, given: argparse.Namespace) -> Contender:
    from xrec.explainer.generation import HuggingFaceEngine
    from xrec.explainer.model import load_backbone

    engine = HuggingFaceEngine(*load_backbone(folder), batch_size=given.batch_size)
    return Contender(lambda requests: [r.token_ids for r in engine.generate(requests)])


def one_at_a_time(folder: str, given: argparse.Namespace) -> Contender:
    from transformers import DynamicCache

    from xrec.explainer.model import InjectedBackbone, load_backbone

    model = InjectedBackbone(load_backbone(folder)[0])

    @torch.inference_mode()
    def explain(request: Request) -> list[int]:
        ids = torch.tensor([request.token_ids])
        masks = {side: torch.zeros(ids.shape, dtype=torch.bool) for side in ("user", "item")}
        masks["user"][0, request.user_positions] = True
        masks["item"][0, request.item_positions] = True
        vectors: Any = (request.user_vector[None], request.item_vector[None])  # pyright: ignore
        cache = DynamicCache(config=model.backbone.config)
        options: Any = {"use_cache": True, "past_key_values": cache}
        output = model(ids, torch.ones_like(ids), masks["user"], masks["item"], *vectors, last=1, **options)
        ids = torch.cat([ids, output.logits[:, -1].argmax(-1, keepdim=True)], dim=1)
        count = request.sampling.max_new_tokens
        ids = model.backbone.generate(
            ids, attention_mask=torch.ones_like(ids), past_key_values=cache, max_new_tokens=count - 1, do_sample=False
        )
        return ids[0, len(request.token_ids) :].tolist()

    return Contender(lambda requests: [explain(request) for request in requests], share=given.alone)


def started(start: Callable[[], Any]) -> tuple[Any, list[psutil.Process]]:
    """What `start` returns, and the processes that came with it."""
    before = set(psutil.Process().children(recursive=True))
    return start(), [p for p in psutil.Process().children(recursive=True) if p not in before]
