"""What a failed request means for its row and for the run: try again, give the row up, or stop everything."""

import email.utils
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, Literal

import aiohttp
import httpx2
import openai

from xrec.profiles.answers import FatalError
from xrec.profiles.client import OpenAIClient

# `unreachable`: no connection, so that no request was made; `refused`: a 400 that may be about this row or about every.
Verdict = Literal["retry", "unreachable", "row", "refused", "fatal"]

_DETAIL_CHARACTERS = 300
_QUOTA = {"insufficient_quota", "billing_hard_limit_reached", "billing_not_active"}
_NO_CONNECTION = (httpx2.ConnectError, aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError)
_RETRIED = {408, 409, 425, 429}
_FILTERED = re.compile(r"content.?(filter|policy)|content management|responsibleai|safety system", re.IGNORECASE)
_TOO_MUCH = re.compile(r"context.?length|context window|maximum.{0,20}length|too many tokens|too long", re.IGNORECASE)
# An endpoint that asks to come back later than this many seconds has nothing for this run.
_LONGEST_WAIT = 3600.0
# How often, and over how many seconds, an endpoint that never answered may be out of reach before the run stops.
_UNREACHABLE_ATTEMPTS, _UNREACHABLE_SECONDS = 5, 3.0
# Rows refused before the first answer, until the settings are to blame rather than the rows.
_REFUSALS = 5
# Which setting a refusal is about, by a word in it, and what to do.
_SETTINGS = {
    "response_format": "set profile.structured_output to json_object or none",
    "json_schema": "set profile.structured_output to json_object or none",
    "temperature": "set profile.temperature to what the model accepts (some take 1 alone)",
    "max_completion_tokens": "set profile.max_tokens to what the model accepts",
    "max_tokens": "set profile.max_tokens to what the model accepts",
}


@dataclass(frozen=True)
class Failure:
    """A request that brought no completion.

    Attributes:
        verdict: what follows.
        reason: one word, such as `http_500`, `timeout`, `connection`.
        detail: what the endpoint or the network said; without the key.
        wait: seconds that the endpoint asked to wait.
        remedy: what the user can do, where the verdict is `fatal` or `refused`.
        settles: whether it is known that no tokens were used.
    """

    verdict: Verdict
    reason: str
    detail: str
    wait: float | None = None
    remedy: str = ""
    settles: bool = True

    def __str__(self) -> str:
        return f"{self.reason}: {self.detail}"


def classify(error: openai.APIError, client: OpenAIClient) -> Failure:
    """What an error of the SDK means."""
    if isinstance(error, openai.APIResponseValidationError):
        return Failure("retry", "bad_response", _shorten(client, str(error)), settles=False)
    if isinstance(error, openai.APIStatusError):
        return _of_status(error, client)
    causes = list(_causes(error))
    detail = _shorten(client, next((str(c) for c in causes if str(c)), type(error).__name__))
    if any(isinstance(c, _NO_CONNECTION) for c in causes):
        return Failure("unreachable", "connection", detail)
    if any(isinstance(c, TimeoutError | httpx2.ReadTimeout) for c in causes):
        return Failure("retry", "timeout", f"no answer within {client.request_timeout:g} s", settles=False)
    return Failure("retry", "connection", detail, settles=False)


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """The innermost cause first."""
    if error is not None:
        yield from _causes(error.__cause__)
        yield error


def _of_status(error: openai.APIStatusError, client: OpenAIClient) -> Failure:
    status, detail = error.status_code, _shorten(client, _said(error))
    reason = f"http_{status}"
    if status in (401, 403):
        remedy = "check the key in the environment variable that profile.compute.api_key_variable names"
        return Failure("fatal", reason, detail, remedy=remedy)
    if status == 404:
        remedy = f"check profile.model = {client.model!r} and profile.compute.base_url = {client.base_url!r}"
        return Failure("fatal", reason, detail, remedy=remedy)
    if status == 429 and {error.code, error.type} & _QUOTA:
        remedy = "the account has no credit left: add some and run again; what is written stays"
        return Failure("fatal", reason, detail, remedy=remedy)
    if status in _RETRIED or status >= 500:
        return Failure("retry", reason, detail, wait=retry_after(error.response.headers))
    if _FILTERED.search(f"{error.code} {detail}"):
        return Failure("row", "refused", detail)
    if _TOO_MUCH.search(f"{error.code} {detail}"):
        return Failure("row", reason, detail)
    remedy = next((remedy for word, remedy in _SETTINGS.items() if word in f"{error.param} {detail}"), "")
    return Failure("refused", reason, detail, remedy=remedy)


def _said(error: openai.APIStatusError) -> str:
    """The message in an error's body, whose shape differs between servers."""
    body: Any = error.body
    for name in ("error", "message", "detail"):
        body = body.get(name, body) if isinstance(body, dict) else body
    said = body if isinstance(body, str) else error.response.text
    return said if said.strip() else error.response.reason_phrase


def _shorten(client: OpenAIClient, text: str) -> str:
    text = " ".join(client.redact(text).split())
    return text if len(text) <= _DETAIL_CHARACTERS else text[: _DETAIL_CHARACTERS - 1] + "…"


def retry_after(headers: httpx2.Headers) -> float | None:
    """Seconds that a server asks to wait: `retry-after-ms`, or `Retry-After` in seconds or as a date (RFC 9110)."""
    for name, unit in (("retry-after-ms", 0.001), ("retry-after", 1.0)):
        value = headers.get(name, "").strip()
        if re.fullmatch(r"\d+(\.\d*)?", value):
            return float(value) * unit
    date = email.utils.parsedate_tz(headers.get("retry-after", ""))
    return None if date is None else max(0.0, email.utils.mktime_tz(date) - time.time())


class EndpointHealth:
    """What the failures of all rows together say about an endpoint.

    Args:
        client: whose endpoint it is.
    """

    def __init__(self, client: OpenAIClient):
        self._client = client
        self._answered = False
        self._refusals = self._unreachable = 0
        self._unreachable_since = 0.0
        self._fatal = ""

    def check(self) -> None:
        """Before a request.

        Raises:
            FatalError: an earlier failure was fatal.
        """
        if self._fatal:
            raise FatalError(self._fatal)

    def answered(self) -> None:
        """A request brought a completion, so the settings are good."""
        self._answered = True

    def failed(self, failure: Failure) -> None:
        """A request failed.

        Raises:
            FatalError: nothing further can succeed.
        """
        fatal = failure.verdict == "fatal"
        if failure.wait is not None and failure.wait > _LONGEST_WAIT:
            fatal, failure = True, replace(failure, remedy=f"it asks to wait {failure.wait:.0f} s: run again then")
        elif failure.verdict == "refused" and not self._answered:
            self._refusals += 1
            fatal = bool(failure.remedy) or self._refusals >= _REFUSALS
        elif failure.verdict == "unreachable" and not self._answered:
            fatal = self._is_out_of_reach()
        elif failure.verdict != "unreachable":
            self._unreachable = 0
        if fatal:
            remedy = failure.remedy or self._default_remedy(failure)
            self._fatal = f"{self._client.base_url} cannot be used ({failure}); {remedy}"
            self.check()

    def _is_out_of_reach(self) -> bool:
        if self._unreachable == 0:
            self._unreachable_since = time.monotonic()
        self._unreachable += 1
        seconds = time.monotonic() - self._unreachable_since
        return self._unreachable >= _UNREACHABLE_ATTEMPTS and seconds >= _UNREACHABLE_SECONDS

    def _default_remedy(self, failure: Failure) -> str:
        if failure.verdict == "unreachable":
            return "check profile.compute.base_url, and that the server is up"
        return f"no request got an answer, so check what the settings ask of model {self._client.model!r}"
