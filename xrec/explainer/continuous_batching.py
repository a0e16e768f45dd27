"""Continuous batching for the Hugging Face engine: requests that come one by one share one running batch.

A server's requests come from any event loop or thread; one thread runs the model. New requests join between two steps
of the batch, ended and cancelled ones leave it. Limits on how many may wait are the server's business. Where a
backbone's cache cannot be merged (`kv_cache.can_merge`), those that wait join when the batch has ended.
"""

import asyncio
import logging
import threading
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

import torch

from xrec.explainer.concurrency import Handover
from xrec.explainer.engine import Progress, Request, Result, sentences
from xrec.explainer.generation import HuggingFaceEngine
from xrec.explainer.running_batch import Row, RunningBatch

log = logging.getLogger(__name__)
# Failures in a row: a GPU whose context is broken fails for ever, a batch that was too large for it only once.
_HOPELESS = 5
_CLOSED = "the engine is closed; make a new one"
Listener = Callable[[str], None]


@dataclass(eq=False)
class _Job:
    """A request on its way: cancelling its future ends its generation; its listener hears the text as it grows."""

    row: Row
    future: "Future[Result]"
    listener: Listener | None = None


@dataclass(eq=False)
class _Scoring:
    """Likelihoods to be computed between two steps."""

    requests: Sequence[Request]
    targets: Sequence[list[int]]
    future: "Future[list[torch.Tensor]]"


class BatchedEngine:
    """Answers requests as they come, from any thread or event loop.

    Args:
        engine: runs the model, from now on in this object's thread alone.
        max_batch: requests generated together; default: the engine's batch size.
        max_prefill_tokens: of the prompts, padding included, that are read between two steps, unless one prompt
            alone is longer. It bounds how long those who join hold up those who run.

    Attributes:
        tokenizer: the model's.
    """

    def __init__(self, engine: HuggingFaceEngine, max_batch: int | None = None, max_prefill_tokens: int = 8192):
        for name, value in (("max_batch", max_batch), ("max_prefill_tokens", max_prefill_tokens)):
            if value is not None and value < 1:
                raise ValueError(f"{name} = {value} must be at least 1")
        self.engine, self.tokenizer = engine, engine.tokenizer
        self.max_batch, self.max_prefill_tokens = max_batch or engine.batch_size, max_prefill_tokens
        # Shared by all threads, under the lock; what follows it is the model's thread's own.
        self._lock = threading.Lock()
        self._waiting: deque[_Job] = deque()
        self._scoring: deque[_Scoring] = deque()
        self._unfinished, self._working, self._closed = 0, False, False
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="explanations")
        self._running: list[_Job] = []
        self._batch: RunningBatch | None = None
        self._failures = 0
        # Those that fail if the model does now.
        self._at_stake: list[Future[Any]] = []

    async def complete(self, request: Request) -> Result:
        """One explanation; cancelling the call ends its generation.

        Raises:
            ValueError: the request is malformed.
            RuntimeError: the model failed, or the engine is closed.
        """
        return await asyncio.wrap_future(self._submit([request])[0])

    async def stream(self, request: Request) -> AsyncIterator[str]:
        """Pieces of one explanation, a whole sentence at a time; joined they are `Result.text`.

        Closing the iterator ends the generation. Raises what `complete` does.
        """
        async with aclosing(self.progress(request)) as steps:
            async for piece in sentences(steps):
                yield piece

    async def progress(self, request: Request) -> AsyncGenerator[Progress, None]:
        """One explanation as it grows, a token at a time; see `LiveEngine.progress`."""
        texts: Handover[str] = Handover()
        (future,) = self._submit([request], texts.put)
        future.add_done_callback(lambda _: texts.put(None))
        try:
            async for text in texts:
                yield Progress(text)
            result = future.result()
            yield Progress(result.text, result)
        finally:
            future.cancel()

    def generate(self, requests: Sequence[Request]) -> list[Result]:
        """Explanations, in the order of the requests; see `Engine.generate`. They share the running batch."""
        return _results(self._submit(requests))

    def logprobs(self, requests: Sequence[Request], targets: Sequence[list[int]]) -> list[torch.Tensor]:
        """Log-probabilities of the targets' tokens, between the batch's steps; see `Engine.logprobs`."""
        if len(requests) != len(targets):
            raise ValueError(f"{len(requests)} requests but {len(targets)} targets; give one target a request")
        self.engine.rows(requests)
        lengths = [len(r.token_ids) + len(t) for r, t in zip(requests, targets, strict=True)]
        jobs, start = [], 0
        while start < len(requests):
            end = start + self._fitting(lengths[start : start + self.max_batch])
            jobs.append(_Scoring(requests[start:end], targets[start:end], Future()))
            start = end
        self._enqueue(self._scoring, jobs)
        return [one for part in _results([job.future for job in jobs]) for one in part]

    @property
    def unfinished(self) -> int:
        """Requests that wait or run now."""
        return self._unfinished

    @property
    def failure(self) -> str | None:
        """Why no more can be expected of the model: it failed again and again, with nothing done in between."""
        if self._failures < _HOPELESS:
            return None
        return f"the language model failed {self._failures} times in a row; the log says why"

    def close(self) -> None:
        """End the thread; requests that wait or run fail, and the engine answers no more."""
        with self._lock:
            self._closed = True
            queued = [*self._waiting, *self._scoring]
            self._waiting.clear()
            self._scoring.clear()
        for job in queued:
            _settle(job.future, error=RuntimeError(_CLOSED))
        self._thread.shutdown()
        self.engine.close()

    def __enter__(self) -> "BatchedEngine":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    # In the callers' threads -------------------------------------------------------------------------------------

    def _submit(self, requests: Sequence[Request], listener: Listener | None = None) -> list["Future[Result]"]:
        jobs = [_Job(row, Future(), listener) for row in self.engine.rows(requests)]
        self._enqueue(self._waiting, jobs)
        return [job.future for job in jobs]

    def _enqueue(self, queue: deque[Any], jobs: Sequence[Any]) -> None:
        with self._lock:
            if self._closed:
                raise RuntimeError(_CLOSED)
            self._unfinished += len(jobs)
            queue.extend(jobs)
            self._wake()
        for job in jobs:
            job.future.add_done_callback(self._count_out)

    def _wake(self) -> None:
        if not self._working:
            self._working = True
            work = self._thread.submit(self._work)
            self._thread.submit(self._after, work)

    def _count_out(self, _: Any) -> None:
        with self._lock:
            self._unfinished -= 1

    # In the model's thread ---------------------------------------------------------------------------------------

    def _work(self) -> None:
        """Run until there is nothing to do."""
        while True:
            self._let_go()
            with self._lock:
                if self._closed or not (self._running or self._waiting or self._scoring):
                    self._working = False
                    break
            self._score()
            self._step()
            self._let_go()
            self._admit()
        self._end_running()

    def _let_go(self) -> None:
        """Of those that have ended, failed or been cancelled."""
        self._running = [job for job in self._running if not job.future.done()]
        self._at_stake = [job.future for job in self._running]
        if not self._running:
            self._batch = None
        elif self._batch is not None:
            self._batch.keep([job.row for job in self._running])

    def _score(self) -> None:
        with self._lock:
            scoring = self._scoring.popleft() if self._scoring else None
        if scoring is not None and not scoring.future.done():
            self._at_stake = [scoring.future]
            _settle(scoring.future, self.engine.logprobs(scoring.requests, scoring.targets))

    def _step(self) -> None:
        if self._batch is not None:
            self._at_stake = [job.future for job in self._running]
            self._batch.step()
            self._failures = 0
            _deliver(self._running)

    def _admit(self) -> None:
        """Read the prompts of those whose turn it is, in the order they came, and let them join."""
        places = self.max_batch - len(self._running)
        if self._batch is not None and not self._batch.can_merge:
            places = 0
        with self._lock:
            waiting = [job for job in self._waiting if not job.future.done()]
            count = self._fitting([len(job.row.request.token_ids) for job in waiting[:places]])
            # Emptied and filled again, not replaced: a caller that waits for the lock has hold of it.
            self._waiting.clear()
            self._waiting.extend(waiting[count:])
        if not (newcomers := waiting[:count]):
            return
        self._at_stake = [job.future for job in newcomers]
        joining = self.engine.start([job.row for job in newcomers])
        _deliver(newcomers)
        self._running += newcomers
        self._at_stake = [job.future for job in self._running]
        if self._batch is not None:
            self._batch.merge(joining)
        else:
            self._batch = joining

    def _fitting(self, lengths: Sequence[int]) -> int:
        """How many sequences, from the first on, may be read between two steps."""
        longest = 0
        for count, length in enumerate(lengths):
            longest = max(longest, length)
            if count and (count + 1) * longest > self.max_prefill_tokens:
                return count
        return len(lengths)

    def _after(self, work: "Future[None]") -> None:
        """Tell those concerned if the model failed, and go on with the others."""
        if (error := work.exception()) is None:
            return
        self._failures += 1
        log.error("the language model failed", exc_info=error)
        for future in self._at_stake:
            # Without the traceback, which would keep the batch's tensors as long as the error is kept.
            _settle(future, error=RuntimeError(f"the language model failed: {type(error).__name__}: {error}"))
        with self._lock:
            self._working = False
            if not self._closed:
                self._wake()
                return
        self._end_running()

    def _end_running(self) -> None:
        for job in self._running:
            _settle(job.future, error=RuntimeError(_CLOSED))
        self._running, self._batch, self._at_stake = [], None, []


def _deliver(jobs: Sequence[_Job]) -> None:
    """Hand over what each explanation has become, and its result once it has ended."""
    for job in jobs:
        if job.row.finish_reason is not None:
            _settle(job.future, job.row.result())
        elif job.listener:
            job.listener(job.row.text)


def _results(futures: Sequence["Future[Any]"]) -> list[Any]:
    try:
        return [future.result() for future in futures]
    finally:
        # An interrupt, or the failure of one, leaves nothing running.
        for future in futures:
            future.cancel()


def _settle(future: "Future[Any]", result: Any = None, error: BaseException | None = None) -> None:
    """Resolve a future unless it is resolved or cancelled already."""
    if future.done() or not future.set_running_or_notify_cancel():
        return
    if error is not None:
        future.set_exception(error)
    else:
        future.set_result(result)
