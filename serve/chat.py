"""`POST /v1/chat/completions`: an explanation for clients that speak OpenAI's API, who name a dataset as the model.

The pair comes as an object `xrec` beside the usual fields, or as JSON in the last message. Streams go by whole
sentences, because what such a client has shown cannot be taken back.
"""

import json
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Request
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from serve import answers
from serve.context import request_id
from serve.errors import DOCUMENTED, STREAMING, describe
from serve.events import Delta, Event, event_stream
from serve.routes import service_of, tally_of
from serve.schemas import ExplanationRow, ExplanationsRequest, Pair, SignalField, Strict, Usage
from serve.service import Service, Tally
from xrec.explainer.engine import complete_sentences
from xrec.serving.queries import RequestError

router = APIRouter(prefix="/v1", responses=DOCUMENTED)


class Message(BaseModel):
    """A message; clients add fields of their own."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    role: Literal["system", "developer", "user", "assistant"]
    content: Annotated[str, Field(max_length=100_000)]


class PairQuery(Pair):
    """The pair to explain."""

    signal: SignalField = "true"


class StreamOptions(Strict):
    include_usage: bool = False
    include_obfuscation: bool = False


class ChatRequest(BaseModel):
    """The fields of OpenAI's that mean something here; others are ignored."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    model: Annotated[str, Field(max_length=64, description="name of a dataset")]
    messages: Annotated[list[Message], Field(min_length=1, max_length=256)]
    xrec: PairQuery | None = Field(
        default=None, description="the pair; without it, the last message's content is this object as JSON"
    )
    stream: bool = False
    stream_options: StreamOptions | None = None
    temperature: Annotated[float, Field(ge=0, le=10)] = 0.0
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    seed: Annotated[int, Field(ge=0, lt=2**53)] | None = None
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    n: Literal[1] | None = None


class AssistantMessage(BaseModel):
    role: Literal["assistant"] = "assistant"
    content: str


class Choice(BaseModel):
    index: int = 0
    message: AssistantMessage
    finish_reason: Literal["stop", "length"]


class ChatResponse(BaseModel):
    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int
    model: str
    choices: list[Choice]
    usage: Usage


@router.post(
    "/chat/completions",
    response_model=ChatResponse,
    responses=STREAMING,
    summary="Explain a pair, as OpenAI's clients ask",
)
async def chat_completions(request: Request, body: ChatRequest) -> Any:
    """An explanation as the assistant's message."""
    service, tally = service_of(request), tally_of(request)
    wanted = _explanations_request(body)
    service.check(wanted, 1, "messages")
    if body.stream:
        return await event_stream(request, _chunks(service, body, wanted, tally))
    answer = await answers.explanations(service, wanted, tally)
    row = answer.explanations[0]
    choice = Choice(message=AssistantMessage(content=row.explanation), finish_reason=_reason(row.finish_reason))
    return ChatResponse(
        id=f"chatcmpl-{request_id()}", created=int(time.time()), model=body.model, choices=[choice], usage=tally.usage
    )


def _explanations_request(body: ChatRequest) -> ExplanationsRequest:
    """The same question in this API's own words."""
    query = body.xrec or _read_pair(body.messages[-1].content)
    pair = Pair(**query.model_dump(exclude={"signal"}))
    tokens = body.max_completion_tokens or body.max_tokens
    limit: dict[str, Any] = {"max_new_tokens": tokens} if tokens else {}
    return ExplanationsRequest(
        dataset=body.model,
        pairs=[pair],
        signal=query.signal,
        temperature=body.temperature,
        top_p=body.top_p,
        seed=body.seed or 0,
        **limit,
    )


def _read_pair(content: str) -> PairQuery:
    try:
        return PairQuery.model_validate(json.loads(content))
    except ValidationError as error:
        found = describe(error.errors())
        raise RequestError(422, "invalid_request", f"the last message: {found.message}", "messages") from error
    except (ValueError, RecursionError) as error:
        raise RequestError(
            422,
            "invalid_request",
            'the last message does not name a pair; send {"user_id": …, "item_id": …} as its content, or as the field '
            "`xrec`",
            "messages",
        ) from error


async def _chunks(
    service: Service, body: ChatRequest, wanted: ExplanationsRequest, tally: Tally
) -> AsyncGenerator[Event, None]:
    base = {
        "id": f"chatcmpl-{request_id()}",
        "object": "chat.completion.chunk",
        "created": int(time.time()),
        "model": body.model,
    }
    text, sent, reason, begun = "", "", "stop", False
    async with aclosing(answers.explanation_events(service, wanted, tally)) as events:
        async for event in events:
            if not begun:
                begun = True
                yield _chunk(base, {"role": "assistant", "content": ""})
            if isinstance(event.data, Delta):
                text += event.data.text
                ready = complete_sentences(text)
            elif isinstance(event.data, ExplanationRow):
                ready, reason = event.data.explanation, event.data.finish_reason
            else:
                continue
            if len(ready) > len(sent):
                yield _chunk(base, {"content": ready[len(sent) :]})
                sent = ready
    yield _chunk(base, {}, _reason(reason))
    if body.stream_options and body.stream_options.include_usage:
        yield Event(None, json.dumps({**base, "choices": [], "usage": tally.usage.model_dump()}))
    yield Event(None, "[DONE]")


def _chunk(base: dict[str, Any], delta: dict[str, Any], reason: str | None = None) -> Event:
    return Event(None, json.dumps({**base, "choices": [{"index": 0, "delta": delta, "finish_reason": reason}]}))


def _reason(reason: str) -> Literal["stop", "length"]:
    return "length" if reason == "length" else "stop"
