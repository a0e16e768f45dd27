"""A job's output as it comes, to its end and its exit code, over connections that are lost meanwhile."""

import asyncio
import time
from collections.abc import AsyncIterator

import aiohttp
from ray.exceptions import AuthenticationError
from ray.job_submission import JobDetails, JobStatus

from ray_jobs.job_client import Jobs, Say, clear_errors, first_line

_POLL_SECONDS, _REMIND_SECONDS, _PATIENCE_SECONDS = 5.0, 60.0, 300.0
_KEPT_CHARACTERS = 100_000
_ERROR_MARK = "xrec: error: "
# What a lost connection looks like: in requests (an OSError), in aiohttp, and in Ray's reading of a closed stream.
_LOST = (OSError, aiohttp.ClientError, RuntimeError)


def follow(jobs: Jobs, job: str, show: Say) -> JobDetails:
    """Show a job's output from its beginning until it ends; returns what the cluster then knows of it.

    Args:
        show: takes the output, piece by piece, each once.

    Raises:
        ValueError: the cluster knows no such job.
        TimeoutError: the dashboard has been silent for five minutes; the job may go on.
    """
    with clear_errors(jobs.address):
        return asyncio.run(_Follower(jobs, job, show).run())


class _Follower:
    """Shows each character of a job's log once, however often the connection is made anew."""

    def __init__(self, jobs: Jobs, job: str, show: Say):
        self.jobs, self.job, self.show = jobs, job, show
        self.shown = 0
        self.reminded = float("-inf")

    async def run(self) -> JobDetails:
        lost: float | None = None
        while True:
            try:
                details = await self._details()
                lost = None
                if details.status.is_terminal():
                    self._show_rest()
                    return details
                await self._tail()
            except _LOST as error:
                if isinstance(error, PermissionError | AuthenticationError):
                    raise
                now = time.monotonic()
                if lost is None:
                    lost = now
                    self.jobs.say(f"connection to {self.jobs.address} lost ({first_line(error)}); trying again")
                if now - lost > _PATIENCE_SECONDS:
                    raise TimeoutError(
                        f"{self.jobs.address} has not answered for {_PATIENCE_SECONDS:g} s; job {self.job} may go on: "
                        f"`xrec submit --attach {self.job}` follows it again"
                    ) from error
            await asyncio.sleep(1.0)

    async def _details(self) -> JobDetails:
        return await asyncio.to_thread(self.jobs.details, self.job)

    async def _tail(self) -> None:
        """Show what comes until the stream ends, or until the job has ended though the stream has not said so."""
        stream, skip = self.jobs.client.tail_job_logs(self.job), self.shown
        following: asyncio.Future[str] | None = None
        try:
            while True:
                following = following or asyncio.ensure_future(_next(stream))
                await asyncio.wait({following}, timeout=_POLL_SECONDS)
                if not following.done():
                    # A connection may be gone without a word, and a job may wait before it writes anything.
                    details = await self._details()
                    if details.status.is_terminal():
                        return
                    await self._remind(details)
                    continue
                text = following.result()
                following = None
                if not text:
                    return
                skipped = min(skip, len(text))
                skip -= skipped
                self._show(text[skipped:])
        finally:
            if following is not None:
                following.cancel()
                await asyncio.wait({following})
            await stream.aclose()  # type: ignore[attr-defined]

    def _show_rest(self) -> None:
        self._show(self.jobs.client.get_job_logs(self.job)[self.shown :])

    def _show(self, text: str) -> None:
        self.shown += len(text)
        if text:
            self.show(text)

    async def _remind(self, details: JobDetails) -> None:
        if details.status != JobStatus.PENDING or time.monotonic() - self.reminded < _REMIND_SECONDS:
            return
        self.reminded = time.monotonic()
        needs = (details.metadata or {}).get("needs")
        what = f"a node with {needs}" if needs else "its environment to be set up"
        pending = await asyncio.to_thread(self.jobs.pending)
        self.jobs.say(f"job {self.job} waits for {what}" + (f" ({pending})" if pending else ""))


async def _next(stream: AsyncIterator[str]) -> str:
    """The next text of a stream that is not empty; empty at its end."""
    async for text in stream:
        if text:
            return text
    return ""


def exit_code(details: JobDetails) -> int:
    """What the job's command returned; 1 for a job that was stopped, killed or never started."""
    if details.status == JobStatus.SUCCEEDED:
        return 0
    code = details.driver_exit_code
    return code if details.status == JobStatus.FAILED and code is not None and 0 < code < 128 else 1


def failure(details: JobDetails, log: str) -> str:
    """Why a job did not succeed, in one line.

    Args:
        log: the end of its output.
    """
    job = details.submission_id
    if details.status == JobStatus.STOPPED:
        return f"job {job} was stopped; submit it again, and it goes on where it was"
    code = details.driver_exit_code
    if code is None or code < 0:
        how = f"its process was ended by signal {-code} (9: often for want of memory)" if code else details.message
        return f"job {job} failed: {how}; submit it again, and it goes on where it was"
    lines = [line.strip() for line in log[-_KEPT_CHARACTERS:].splitlines() if line.strip()]
    said = next((line for line in reversed(lines) if line.startswith(_ERROR_MARK)), lines[-1] if lines else "no output")
    return f"job {job} failed with exit code {code}: {said.removeprefix(_ERROR_MARK)}"
