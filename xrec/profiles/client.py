"""One request to an OpenAI-compatible endpoint. Repeating it, limits and deadlines are the writer's business.

The SDK sends the request and names its errors. The answer's body is validated here: the SDK would take whatever shape
comes, and half of the time of a request is its own (un)packing of parameters and answers.
"""

import asyncio
import os
import re
from dataclasses import dataclass
from typing import Any, Literal

import aiohttp
import httpx2
import openai
from pydantic import BaseModel, Field, ValidationError

from xrec.profiles.answers import FatalError
from xrec.profiles.tokens import estimate_message_tokens, estimate_tokens

OPENAI_URL = "https://api.openai.com/v1"
StructuredOutput = Literal["json_schema", "json_object", "none"]

_NO_KEY = "none"
_CONNECT_SECONDS = 10.0
_REDACTED = "[key]"
_BEARER = re.compile(r"(?i)(bearer\s+)\S+")


@dataclass(frozen=True)
class Completion:
    """What a model answered.

    Attributes:
        content: what it said; None where it said nothing or refused.
        refusal: why it refused, where the endpoint says so in a field of its own.
        finish_reason: `stop`, `length`, `content_filter`, …; empty where the endpoint gives none.
        model: the model that answered, as the endpoint names it, else as it was asked for.
        tokens_in, tokens_out: as the endpoint counted them; estimated from characters where it does not say.
    """

    content: str | None
    refusal: str | None
    finish_reason: str
    model: str
    tokens_in: int
    tokens_out: int


class _Message(BaseModel):
    content: str | None = None
    refusal: str | None = None


class _Choice(BaseModel):
    message: _Message
    finish_reason: str | None = None


class _Usage(BaseModel):
    prompt_tokens: int | None = None
    completion_tokens: int | None = None


class _Body(BaseModel):
    model: str | None = None
    choices: list[_Choice] = Field(min_length=1)
    usage: _Usage | None = None


_NOT_COUNTED = _Usage()


class OpenAIClient:
    """A model behind an OpenAI-compatible endpoint; to be used within one event loop.

    Args:
        model: its name at the endpoint.
        base_url: the endpoint, such as http://HOST:8000/v1; None: OpenAI's.
        api_key: never shown by this object or its errors' `redact`ed text.
        temperature: 0 is greedy.
        max_tokens: longest answer, in tokens.
        structured_output: how the endpoint is asked for JSON.
        request_timeout: seconds that one request may take from the first byte sent to the last received.
        concurrency: requests that may be open at once, which is how many connections are kept.

    Raises:
        FatalError: `base_url` is not a URL of HTTP, or `api_key` cannot be sent.
    """

    def __init__(
        self,
        model: str,
        base_url: str | None,
        api_key: str,
        temperature: float = 0.0,
        max_tokens: int = 256,
        structured_output: StructuredOutput = "json_schema",
        request_timeout: float = 60.0,
        concurrency: int = 64,
    ):
        self.model, self.base_url = model, base_url or OPENAI_URL
        self.max_tokens, self.structured_output, self.request_timeout = max_tokens, structured_output, request_timeout
        if not self.base_url.startswith(("http://", "https://")):
            raise FatalError(f"profile.compute.base_url = {self.base_url!r} must begin with http:// or https://")
        if not (api_key.isascii() and api_key.isprintable() and api_key.strip() == api_key):
            raise FatalError("the key has characters that no HTTP header may carry; set its variable to the key alone")
        self._api_key = api_key
        # OpenAI's newer models refuse `max_tokens`, and most other servers know no other name.
        limit = "max_completion_tokens" if self.base_url == OPENAI_URL else "max_tokens"
        self._parameters: dict[str, Any] = {"model": model, "temperature": temperature, limit: max_tokens}
        # Several times as fast as the SDK's own transport, which searches its whole pool at every request.
        http = openai.DefaultAioHttpClient(
            limits=httpx2.Limits(max_connections=concurrency, max_keepalive_connections=concurrency),
            timeout=httpx2.Timeout(request_timeout, connect=min(request_timeout, _CONNECT_SECONDS)),
        )
        self._sdk = openai.AsyncOpenAI(api_key=api_key, base_url=self.base_url, max_retries=0, http_client=http)

    def __repr__(self) -> str:
        return f"OpenAIClient(model={self.model!r}, base_url={self.base_url!r})"

    async def complete(self, messages: list[dict[str, str]], schema: dict[str, Any]) -> Completion:
        """Send one request.

        Args:
            messages: the chat.
            schema: JSON schema of the answer.

        Raises:
            openai.APIError: the request failed, timed out, or was answered with something that is no completion.
        """
        body = self.request_body(messages, schema)
        try:
            async with asyncio.timeout(self.request_timeout):
                response = await self._sdk.post("/chat/completions", cast_to=httpx2.Response, body=body)
        except TimeoutError as error:
            raise openai.APITimeoutError(request=self._request()) from error
        except aiohttp.ClientError as error:  # those that the SDK's transport does not translate
            raise openai.APIConnectionError(message=str(error), request=self._request()) from error
        try:
            return self.completion(messages, response.content)
        except ValueError as error:
            message = f"{error}: {response.text}"
            raise openai.APIResponseValidationError(response=response, body=response.text, message=message) from None

    def request_body(self, messages: list[dict[str, str]], schema: dict[str, Any]) -> dict[str, Any]:
        """What a request says, as JSON."""
        return {**self._parameters, "messages": messages, **self._response_format(schema)}

    def completion(self, messages: list[dict[str, str]], body: bytes | str) -> Completion:
        """What an answer's body says.

        Raises:
            ValueError: it is no chat completion.
        """
        try:
            answer = _Body.model_validate_json(body)
        except ValidationError as error:
            wrong = error.errors(include_url=False, include_input=False, include_context=False)[0]["msg"]
            raise ValueError(f"the answer is no chat completion ({wrong})") from None
        return self._completion(messages, answer)

    def _completion(self, messages: list[dict[str, str]], answer: _Body) -> Completion:
        choice = answer.choices[0]
        said, refusal = choice.message.content, choice.message.refusal
        usage = answer.usage or _NOT_COUNTED
        tokens_in, tokens_out = usage.prompt_tokens, usage.completion_tokens
        if tokens_in is None:
            tokens_in = estimate_message_tokens(messages)
        if tokens_out is None:
            tokens_out = estimate_tokens(said or refusal or "")
        model = answer.model or self.model
        return Completion(said, refusal, choice.finish_reason or "", model, tokens_in, tokens_out)

    def _response_format(self, schema: dict[str, Any]) -> dict[str, Any]:
        if self.structured_output == "none":
            return {}
        if self.structured_output == "json_object":
            return {"response_format": {"type": "json_object"}}
        answer = {"name": "answer", "strict": True, "schema": schema}
        return {"response_format": {"type": "json_schema", "json_schema": answer}}

    def _request(self) -> httpx2.Request:
        return httpx2.Request("POST", f"{self.base_url.rstrip('/')}/chat/completions")

    def redact(self, text: str) -> str:
        """The text without the key, wherever a server may have repeated it."""
        if self._api_key != _NO_KEY:
            text = text.replace(self._api_key, _REDACTED)
        return _BEARER.sub(rf"\g<1>{_REDACTED}", text)

    async def close(self) -> None:
        """Close the connections."""
        await self._sdk.close()

    @staticmethod
    def api_key_from(variable: str, base_url: str | None = None) -> str:
        """The key that an environment variable holds; endpoints other than OpenAI's may need none.

        Raises:
            FatalError: the variable is not set, and the endpoint is OpenAI's.
        """
        key = os.environ.get(variable, "").strip()
        if not key and base_url in (None, OPENAI_URL):
            raise FatalError(
                f"the environment variable {variable} is not set, and {OPENAI_URL} needs a key; set it, name another "
                "in profile.compute.api_key_variable, or set profile.compute.base_url to an endpoint of your own"
            )
        return key or _NO_KEY
