"""The vLLM engine: the same protocol as the Hugging Face one, with continuous batching and prefix caching.

The model runs in processes of vLLM's own. Requests come from any thread or event loop and share its running batch: they
are handed over by one event loop in a thread of this engine's. What the model does with vectors is `vllm_model.py`'s
business. This module needs vLLM, and a process that has not imported the graph package.

Source of the injection: Eq. 12 of arXiv 2406.02377.
"""

# pyright: reportMissingImports=false
# (vLLM lives in an environment of its own)
import asyncio
import hashlib
import itertools
import os
import tempfile
import threading
from collections.abc import AsyncGenerator, AsyncIterator, Coroutine, Sequence
from contextlib import aclosing
from typing import Any, TypeVar

import torch
from transformers import AutoConfig, AutoTokenizer
from vllm import AsyncEngineArgs, SamplingParams
from vllm.exceptions import VLLMValidationError
from vllm.platforms import current_platform
from vllm.sampling_params import RequestOutputKind
from vllm.v1.engine.async_llm import AsyncLLM

from xrec.explainer.concurrency import Handover, together
from xrec.explainer.engine import (
    FinishReason,
    Progress,
    Request,
    Result,
    Sampling,
    check_request,
    cut_at_sentence,
    end_ids,
    finish,
    sentences,
)
from xrec.explainer.injection import Injection
from xrec.explainer.prompt import reserved_token_id
from xrec.explainer.vllm_failures import VARIABLE, describe, root_cause
from xrec.explainer.vllm_inputs import MODALITY, MOST_VECTORS
from xrec.explainer.vllm_memory import cache_arguments
from xrec.explainer.vllm_plugin import overrides

T = TypeVar("T")

# vLLM clips a bias to this; the reserved id then never comes out.
_NEVER = -100.0
# On a CPU vLLM would bind its threads to all cores, each engine to the same ones; and its blocks of 128 tokens leave
# most prompts without a whole one to share.
_CPU_ENVIRONMENT = {"VLLM_CPU_OMP_THREADS_BIND": "nobind"}
_CPU_ARGUMENTS: dict[str, Any] = {"dtype": "float32", "block_size": 32}
# vLLM's incremental text may lag behind the tokens by a word or so.
_SLACK_WORDS = 3


class VLLMEngine:
    """Runs a decoder of the LLaMA, Mistral or Qwen families in vLLM.

    Args:
        model: Hugging Face name, or a folder with config.json, weights and tokenizer; used as it is.
        injection, input_replacement: as the adapter was tuned.
        arguments: any of vLLM's engine arguments (`dtype`, `max_model_len`, `tensor_parallel_size`, …). On a CPU the
            cache is sized by `vllm_memory.py` unless they, or VLLM_CPU_KVCACHE_SPACE, size it.

    Attributes:
        tokenizer: the model's.
        hidden_size: H, the length of an adapted vector.
        prompt_tokens, cached_tokens: of all requests so far; the latter were taken from the prefix cache.

    Raises:
        ValueError: vLLM or this engine does not run the model, an argument is wrong, or one of vLLM's processes fails
            at its start; the message has what failed there.
    """

    def __init__(self, model: str, injection: Injection = "input", input_replacement: bool = True, **arguments: Any):
        named = {name: arguments.get(name) for name in ("revision", "trust_remote_code") if name in arguments}
        config = AutoConfig.from_pretrained(model, **named)
        self.tokenizer = AutoTokenizer.from_pretrained(arguments.get("tokenizer") or model, **named)
        self.hidden_size = config.hidden_size
        self.reserved_id = reserved_token_id(self.tokenizer)
        changed = overrides(config, self.reserved_id, injection, input_replacement)
        if current_platform.is_cpu():
            _check_heads(config)
            for name, value in _CPU_ENVIRONMENT.items():
                os.environ.setdefault(name, value)
            arguments = _CPU_ARGUMENTS | arguments
            arguments |= cache_arguments(config, arguments, os.environ, _available_memory())
        arguments = {"disable_log_stats": True, "enable_prefix_caching": True} | arguments
        arguments["hf_overrides"] = (arguments.get("hf_overrides") or {}) | changed
        self.prompt_tokens = self.cached_tokens = 0
        self._numbers = itertools.count()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="vllm-requests", daemon=True)
        self._thread.start()
        self._failures = tempfile.TemporaryDirectory(prefix="xrec-vllm-")
        try:
            self._llm = self._started({"model": model} | arguments)
        except BaseException:
            self._stop_loop()
            raise
        self.max_length: int = self._llm.model_config.max_model_len
        extra = self._llm.model_config.try_get_generation_config().get("eos_token_id")
        self.end_ids = end_ids(self.tokenizer, extra)

    def generate(self, requests: Sequence[Request]) -> list[Result]:
        """Explanations, in the order of the requests; see `Engine.generate`.

        Calls from several threads share the running batch.
        """
        self._check(requests)
        return self._run(together([self._result(request) for request in requests]))

    async def complete(self, request: Request) -> Result:
        """One explanation; cancelling the call ends its generation.

        Raises:
            ValueError: the request is malformed.
        """
        self._check([request])
        return await asyncio.wrap_future(self._submit(self._result(request)))

    async def progress(self, request: Request) -> AsyncGenerator[Progress, None]:
        """One explanation as it grows, the last with its result; closing the iterator ends its generation.

        Raises:
            ValueError: the request is malformed.
        """
        self._check([request])
        steps: Handover[Progress] = Handover()

        async def produce() -> None:
            async for progress in self._progress(request):
                steps.put(progress)

        producer = self._submit(produce())
        producer.add_done_callback(lambda _: steps.put(None))
        try:
            async for progress in steps:
                yield progress
            producer.result()
        finally:
            producer.cancel()

    async def stream(self, request: Request) -> AsyncIterator[str]:
        """Pieces of one explanation, a whole sentence at a time, since only a whole one can't be cut back.

        Closing the iterator ends the generation.
        """
        async with aclosing(self.progress(request)) as steps:
            async for piece in sentences(steps):
                yield piece

    def logprobs(self, requests: Sequence[Request], targets: Sequence[list[int]]) -> list[torch.Tensor]:
        """Log-probabilities of the targets' tokens; see `Engine.logprobs`."""
        if len(requests) != len(targets):
            raise ValueError(f"{len(requests)} requests but {len(targets)} targets; give one target a request")
        self._check(requests, [len(target) for target in targets])
        return self._run(together([self._likelihood(r, t) for r, t in zip(requests, targets, strict=True)]))

    @property
    def unfinished(self) -> int:
        """Requests that wait or run now."""
        return self._llm.get_num_unfinished_requests()

    @property
    def failure(self) -> str | None:
        """Why it will never answer again: vLLM's processes have ended."""
        if not self._llm.errored:
            return None
        return f"vLLM has ended: {root_cause(self._failures.name) or self._llm.dead_error}"

    def close(self) -> None:
        """End vLLM's processes; the engine answers no more."""
        if self._thread.is_alive():
            self._run(self._shut_down())
            self._stop_loop()
            # Otherwise its finaliser would run once more, at the interpreter's end.
            del self._llm

    def __enter__(self) -> "VLLMEngine":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    # ------------------------------------------------------------------------------------------------------------

    def _started(self, arguments: dict[str, Any]) -> AsyncLLM:
        """Start vLLM's processes, and say what failed in them."""
        earlier = os.environ.get(VARIABLE)
        os.environ[VARIABLE] = self._failures.name
        try:
            return self._run(self._start(AsyncEngineArgs(**arguments)))
        except Exception as error:
            cause = root_cause(self._failures.name) or describe(error)
            raise ValueError(
                f"vLLM did not start: {cause}; what it starts with is set by engine_arguments and engine_environment "
                "(of explain.compute, or of the server's explainer)"
            ) from error
        finally:
            del os.environ[VARIABLE]
            if earlier is not None:
                os.environ[VARIABLE] = earlier

    async def _start(self, arguments: AsyncEngineArgs) -> AsyncLLM:
        return AsyncLLM.from_engine_args(arguments)

    async def _shut_down(self) -> None:
        self._llm.shutdown()
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)

    def _submit(self, work: Coroutine[Any, Any, T]) -> Any:
        if self._loop.is_closed():
            work.close()
            raise RuntimeError("the engine is closed; make a new one")
        return asyncio.run_coroutine_threadsafe(work, self._loop)

    def _run(self, work: Coroutine[Any, Any, T]) -> T:
        future = self._submit(work)
        try:
            return future.result()
        finally:
            # An interrupt leaves nothing running.
            future.cancel()

    def _stop_loop(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()
        self._failures.cleanup()

    def _check(self, requests: Sequence[Request], further: Sequence[int] | None = None) -> None:
        for index, request in enumerate(requests):
            check_request(request, index, self.hidden_size, self.reserved_id)
            try:
                self._sampling(request.sampling)
            except VLLMValidationError as error:
                raise ValueError(f"request {index}: {error}") from error
            count = len(request.user_positions) + len(request.item_positions)
            if count > MOST_VECTORS:
                raise ValueError(f"request {index}: {count} reserved positions; the vLLM engine takes {MOST_VECTORS}")
            length = len(request.token_ids) + (further[index] if further else 0)
            if length >= self.max_length:
                raise ValueError(
                    f"request {index}: {length} tokens leave no room to generate within max_model_len = "
                    f"{self.max_length}; shorten the profiles, or raise max_model_len if the model allows it"
                )

    def _prompt(self, request: Request, target: Sequence[int] = ()) -> dict[str, Any]:
        placed = ((request.user_positions, request.user_vector), (request.item_positions, request.item_vector))
        vectors = {position: vector for positions, vector in placed for position in positions}
        silent = torch.zeros(self.hidden_size)
        items = [silent if (vector := vectors[p]) is None else vector for p in sorted(vectors)]
        items += [silent] * list(target).count(self.reserved_id)
        prompt: dict[str, Any] = {"prompt_token_ids": [*request.token_ids, *target]}
        if items:
            prompt["multi_modal_data"] = {MODALITY: items}
            # What the prefix cache goes by; vLLM's own way of hashing tensors takes longer.
            prompt["multi_modal_uuids"] = {MODALITY: [_digest(item) for item in items]}
        return prompt

    async def _outputs(self, prompt: dict[str, Any], sampling: SamplingParams) -> AsyncGenerator[Any, None]:
        # Closing vLLM's iterator is what ends a request that goes no further.
        async with aclosing(self._llm.generate(prompt, sampling, str(next(self._numbers)))) as outputs:
            first = True
            async for output in outputs:
                if first:
                    self.prompt_tokens += len(output.prompt_token_ids or ())
                    self.cached_tokens += output.num_cached_tokens or 0
                    first = False
                yield output

    async def _result(self, request: Request) -> Result:
        """Generate to the end, decoding with the tokenizer only where the words come near their limit."""
        sampling, tokens, said = request.sampling, [], ""
        async with aclosing(self._outputs(self._prompt(request), self._sampling(sampling))) as outputs:
            async for output in outputs:
                new = output.outputs[0]
                said += new.text
                near = len(said.split()) + len(new.token_ids) + _SLACK_WORDS > sampling.max_words
                if not (near or new.finish_reason):
                    tokens.extend(new.token_ids)
                    continue
                for token in new.token_ids:
                    tokens.append(token)
                    text, reason = self._finish(tokens, sampling)
                    if reason is not None:
                        return Result(text, tokens, reason)
        text, reason = self._cut_short(tokens)
        return Result(text, tokens, reason)

    async def _progress(self, request: Request) -> AsyncIterator[Progress]:
        sampling, tokens = request.sampling, []
        async with aclosing(self._outputs(self._prompt(request), self._sampling(sampling))) as outputs:
            async for output in outputs:
                for token in output.outputs[0].token_ids:
                    tokens.append(token)
                    text, reason = self._finish(tokens, sampling)
                    if reason:
                        yield Progress(text, Result(text, tokens, reason))
                        return
                    yield Progress(text)
        text, reason = self._cut_short(tokens)
        yield Progress(text, Result(text, tokens, reason))

    def _cut_short(self, tokens: list[int]) -> tuple[str, FinishReason]:
        """What is left where vLLM ended it before either limit: the model's context is full."""
        return cut_at_sentence(self._decode(tokens))

    def _finish(self, tokens: list[int], sampling: Sampling) -> tuple[str, FinishReason | None]:
        return finish(self._decode(tokens), tokens[-1] in self.end_ids, len(tokens), sampling)

    def _decode(self, tokens: list[int]) -> str:
        return self.tokenizer.decode(tokens, skip_special_tokens=True)

    async def _likelihood(self, request: Request, target: list[int]) -> torch.Tensor:
        if not target:
            return torch.empty(0)
        sampling = SamplingParams(
            max_tokens=1, prompt_logprobs=0, detokenize=False, output_kind=RequestOutputKind.FINAL_ONLY
        )
        async with aclosing(self._outputs(self._prompt(request, target), sampling)) as outputs:
            async for output in outputs:
                given = output.prompt_logprobs[-len(target) :]
                return torch.tensor([entry[token].logprob for entry, token in zip(given, target, strict=True)])
        raise RuntimeError("vLLM ended a request without an output")

    def _sampling(self, sampling: Sampling) -> SamplingParams:
        return SamplingParams(
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            seed=sampling.seed if sampling.temperature > 0 else None,
            max_tokens=sampling.max_new_tokens,
            stop_token_ids=self.end_ids,
            logit_bias={self.reserved_id: _NEVER},
            output_kind=RequestOutputKind.DELTA,
        )


def _available_memory() -> int:
    """Bytes, where vLLM will look for them: in a container its limit counts."""
    from vllm.utils.cpu_resource_utils import get_allowed_cpu_list, get_memory_node_info

    return get_memory_node_info(get_allowed_cpu_list()[0].numa_node).available_memory


def _check_heads(config: Any) -> None:
    """Refuse what vLLM's attention on CPUs would fail at with the first request."""
    from vllm.v1.attention.backends.cpu_attn import CPUAttentionBackend

    known = CPUAttentionBackend.get_supported_head_sizes()
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    if size not in known:
        raise ValueError(
            f"the backbone's attention heads are {size} wide; on a CPU vLLM runs {', '.join(map(str, known))}; use the "
            "Hugging Face engine (explain.engine = hf), or another backbone"
        )


def _digest(vector: torch.Tensor) -> str:
    """Equal for equal vectors alone."""
    return hashlib.sha256(vector.detach().to("cpu", torch.float32).contiguous().numpy().tobytes()).hexdigest()
