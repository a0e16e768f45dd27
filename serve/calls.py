"""Calls of one deployment by another: what a lost replica, a full queue and a refusal mean for the caller."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

from ray.exceptions import ActorUnavailableError, RayActorError
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError

from xrec.serving.queries import RequestError

# A replica that was killed is known to be dead within the second; its successor may take longer, and then the request
# waits for it in the caller's queue.
_ATTEMPTS = 4
_PAUSE = 0.2
_LOST = (RayActorError, ActorUnavailableError)
_PROBLEMS = (*_LOST, BackPressureError, DeploymentUnavailableError)


async def call(method: Any, *arguments: Any) -> Any:
    """A deployment's answer; asked again where its replica died, since nothing it does is seen before it answers.

    Raises:
        RequestError: the deployment returned it, or cannot be reached (503).
    """
    for attempt in range(1, _ATTEMPTS + 1):
        try:
            answer = await method.remote(*arguments)
        except _PROBLEMS as error:
            await _before_next(attempt, error)
        else:
            if isinstance(answer, RequestError):
                raise answer
            return answer
    raise AssertionError("the last attempt returns or raises")


async def stream(method: Any, *arguments: Any) -> AsyncGenerator[Any, None]:
    """A deployment's answers as they come; asked again where its replica died before the first.

    Raises:
        RequestError: as `call`; and where the replica died after the first answer (503, `interrupted`).
    """
    for attempt in range(1, _ATTEMPTS + 1):
        begun = False
        try:
            async with aclosing(_iterate(method.options(stream=True).remote(*arguments))) as answers:
                async for answer in answers:
                    if isinstance(answer, RequestError):
                        raise answer
                    begun = True
                    yield answer
            return
        except _PROBLEMS as error:
            if begun and isinstance(error, _LOST):
                raise RequestError(
                    503, "interrupted", "the process that wrote this explanation ended; ask again"
                ) from error
            await _before_next(attempt, error)


def overloaded() -> RequestError:
    return RequestError(503, "overloaded", "the server has as much to do as it takes on; ask again after Retry-After")


async def _before_next(attempt: int, error: Exception) -> None:
    """Wait where a replica was lost and another may answer; else raise what the client is told."""
    if isinstance(error, BackPressureError):
        raise overloaded() from error
    if isinstance(error, DeploymentUnavailableError) or attempt == _ATTEMPTS:
        message = "a part of the server is not there at the moment; ask again"
        raise RequestError(503, "unavailable", message) from error
    await asyncio.sleep(_PAUSE * attempt)


async def _iterate(response: Any) -> AsyncGenerator[Any, None]:
    try:
        async for answer in response:
            yield answer
    finally:
        # Leaving a response unread does not end its generation.
        response.cancel()
