"""The API's routes. What they do is `answers.py`'s business; the OpenAI-compatible one is `chat.py`."""

from datetime import datetime
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Path, Query, Request

from serve import answers
from serve.calls import call
from serve.errors import DOCUMENTED, STREAMING
from serve.events import event_stream
from serve.schemas import (
    ExplanationsRequest,
    ExplanationsResponse,
    Generation,
    ItemReference,
    ItemRowResponse,
    ItemsResponse,
    ModelRow,
    ModelsResponse,
    RecommendationsRequest,
    RecommendationsResponse,
    UserResponse,
    UserRow,
    UsersResponse,
)
from serve.service import RecommendationsQuery, Service, Tally
from xrec.serving.queries import UserQuery

Dataset = Annotated[str | None, Query(max_length=64, description="name of a dataset; default: the first")]
UserId = Annotated[str, Path(max_length=512, description="an id of the dataset's source")]
Limit = Annotated[int, Query(ge=1, le=200)]
SearchText = Annotated[str, Query(max_length=200)]
router = APIRouter(prefix="/v1", responses=DOCUMENTED)
operations = APIRouter()


def service_of(request: Request) -> Service:
    return request.app.state.service


def tally_of(request: Request) -> Tally:
    """This request's tally, which its log line is made from."""
    request.state.tally = tally = Tally()
    return tally


@router.post("/explanations", response_model=ExplanationsResponse, responses=STREAMING, summary="Explain pairs")
async def explanations(request: Request, body: ExplanationsRequest) -> Any:
    """Explain one or many pairs of users and items, known or new.

    With `stream`, server-sent events: `delta` (a piece of the text), `explanation` (a finished row, whose text counts),
    and at the end `done` or `error`.
    """
    service, tally = service_of(request), tally_of(request)
    service.check(body, len(body.pairs), "pairs")
    if body.stream:
        return await event_stream(request, answers.explanation_events(service, body, tally))
    return await answers.explanations(service, body, tally)


@router.get(
    "/users/{user_id:path}/recommendations",
    response_model=RecommendationsResponse,
    response_model_exclude_unset=True,
    responses=STREAMING,
    summary="Recommend items to a known user",
)
async def recommendations(
    request: Request,
    user_id: UserId,
    dataset: Dataset = None,
    k: Annotated[int, Query(ge=1, description="how many items")] = 10,
    explain: Annotated[bool, Query(description="also say why")] = False,
    evidence: Annotated[bool, Query(description="also say what stands behind each explanation (and explain)")] = False,
    signal: Annotated[Literal["true", "average", "off"], Query(description="the collaborative signal")] = "true",
    stream: Annotated[bool, Query(description="server-sent events instead of one JSON answer")] = False,
    deadline_seconds: Annotated[float | None, Query(gt=0)] = None,
) -> Any:
    """LightGCN's top-k items that the user has not chosen yet, with their scores.

    With `stream`, server-sent events: `recommendations`, then as for explanations.
    """
    how = Generation(deadline_seconds=deadline_seconds)
    user = UserQuery(user_id=user_id)
    query = RecommendationsQuery(dataset, user, k, explain or evidence, evidence, signal, how)
    return await _recommend(request, query, stream)


@router.post(
    "/recommendations",
    response_model=RecommendationsResponse,
    response_model_exclude_unset=True,
    responses=STREAMING,
    summary="Recommend items to a new user",
)
async def recommendations_for_new_user(request: Request, body: RecommendationsRequest) -> Any:
    """The same for a user whom the dataset does not know, from the items that the user has chosen."""
    user = UserQuery(interactions=tuple(body.interactions), profile=body.user_profile)
    explain = body.explain or body.evidence
    query = RecommendationsQuery(body.dataset, user, body.k, explain, body.evidence, body.signal, body)
    return await _recommend(request, query, body.stream)


async def _recommend(request: Request, query: RecommendationsQuery, stream: bool) -> Any:
    service, tally = service_of(request), tally_of(request)
    service.check(query.how, query.k, "k")
    if stream:
        return await event_stream(request, answers.recommendation_events(service, query, tally))
    return await answers.recommendations(service, query, tally)


@router.get("/users", summary="Find users")
async def users(request: Request, dataset: Dataset = None, query: SearchText = "", limit: Limit = 20) -> UsersResponse:
    """Known users whose ids begin with a text."""
    name, rows = await call(service_of(request).lookup.search_users, dataset, query, limit)
    return UsersResponse(dataset=name, users=[UserRow(user_id=u, interactions=n) for u, n in rows])


@router.get("/users/{user_id:path}", summary="A known user")
async def user(request: Request, user_id: UserId, dataset: Dataset = None) -> UserResponse:
    """A user's profile and history."""
    name, found = await call(service_of(request).lookup.user, dataset, user_id)
    history = [ItemReference(item_id=row.item_id, title=row.title) for row in found.history]
    return UserResponse(
        dataset=name, user_id=found.user_id, profile=found.profile, zero_shot=found.zero_shot, history=history
    )


@router.get("/items", summary="Find items")
async def items(request: Request, dataset: Dataset = None, query: SearchText = "", limit: Limit = 20) -> ItemsResponse:
    """Known items whose titles contain a text."""
    name, rows = await call(service_of(request).lookup.search_items, dataset, query, limit)
    found = [ItemRowResponse(item_id=r.item_id, title=r.title, interactions=r.interactions or 0) for r in rows]
    return ItemsResponse(dataset=name, items=found)


@router.get("/models", summary="What is served")
async def models(request: Request) -> ModelsResponse:
    """The datasets, as OpenAI's clients list models, with the snapshot that each serves from."""
    states = await service_of(request).states()
    return ModelsResponse(data=[_model(name, state) for name, state in states.items()])


def _model(name: str, state: dict[str, Any]) -> ModelRow:
    created = int(datetime.fromisoformat(state["loaded_at"]).timestamp())
    # The reason names files of the server; its log has it.
    error = None if state["error"] is None else "a newer snapshot is refused; the server's log says why"
    return ModelRow(**{**state, "id": name, "created": created, "error": error})


@operations.get("/healthz", summary="Whether this process answers")
async def healthz() -> dict[str, str]:
    return {"status": "ok"}


@operations.get("/readyz", responses={503: DOCUMENTED[503]}, summary="Whether every deployment answers")
async def readyz(request: Request) -> dict[str, str]:
    await service_of(request).ready()
    return {"status": "ready"}
