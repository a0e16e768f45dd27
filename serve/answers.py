"""Answers put together: explanations and recommendations, as one JSON document or as events."""

from collections.abc import AsyncGenerator

from pydantic import BaseModel

from serve.context import request_id
from serve.events import Delta, Event, before, growing
from serve.schemas import (
    EvidenceRow,
    ExplanationRow,
    ExplanationsRequest,
    ExplanationsResponse,
    HistoryRow,
    ItemReference,
    RecommendationRow,
    RecommendationsResponse,
    SignalEffectRow,
    SimilarUserRow,
    Usage,
)
from serve.service import RecommendationsQuery, Service, Tally, Written
from xrec.serving.live import Explanation
from xrec.serving.queries import Evidence, Resolved


class IndexedExplanation(ExplanationRow):
    index: int


class IndexedRecommendation(RecommendationRow):
    index: int


class Done(BaseModel):
    """The last event of a good stream."""

    usage: Usage


async def explanations(service: Service, body: ExplanationsRequest, tally: Tally) -> ExplanationsResponse:
    """Explain pairs.

    Raises:
        RequestError: see `Service`.
    """
    deadline = service.deadline(body)
    with service.admitted(len(body.pairs)):
        resolved = await before(deadline, service.look_up(body, tally))
        written = await before(deadline, service.write(resolved, body, tally))
    return ExplanationsResponse(
        id=request_id(),
        dataset=resolved.dataset,
        snapshot=resolved.snapshot,
        adapter_hash=resolved.adapter_hash,
        explanations=[_explanation(body, resolved, n, one) for n, one in enumerate(written)],
        usage=tally.usage,
    )


async def explanation_events(service: Service, body: ExplanationsRequest, tally: Tally) -> AsyncGenerator[Event, None]:
    """The same as events: `delta`, `explanation`, `done`."""
    deadline = service.deadline(body)
    with service.admitted(len(body.pairs)):
        resolved = await before(deadline, service.look_up(body, tally))
        async for index, update in growing(service.write_streaming(resolved, body, tally), deadline):
            if isinstance(update, Written):
                row = _explanation(body, resolved, index, update)
                yield Event("explanation", IndexedExplanation(index=index, **dict(row)))
            else:
                yield Event("delta", Delta(index=index, text=update))
    yield Event("done", Done(usage=tally.usage))


async def recommendations(service: Service, query: RecommendationsQuery, tally: Tally) -> RecommendationsResponse:
    """A user's top-k items, explained where that is asked for."""
    deadline = service.deadline(query.how)
    with service.admitted(query.k if query.explain else 0):
        resolved = await before(deadline, service.recommend(query, tally))
        written: list[Written] = []
        if query.explain:
            written = await before(deadline, service.write(resolved, query.how, tally))
    return _recommended(query, resolved, written, tally)


async def recommendation_events(
    service: Service, query: RecommendationsQuery, tally: Tally
) -> AsyncGenerator[Event, None]:
    """The same as events: `recommendations` (without explanations), then as `explanation_events`."""
    deadline = service.deadline(query.how)
    with service.admitted(query.k if query.explain else 0):
        resolved = await before(deadline, service.recommend(query, tally))
        yield Event("recommendations", _recommended(query, resolved, [], tally))
        if query.explain:
            async for index, update in growing(service.write_streaming(resolved, query.how, tally), deadline):
                if isinstance(update, Written):
                    row = _recommendation(resolved, index, update)
                    yield Event("explanation", IndexedRecommendation(index=index, **dict(row)))
                else:
                    yield Event("delta", Delta(index=index, text=update))
    yield Event("done", Done(usage=tally.usage))


def _recommended(
    query: RecommendationsQuery, resolved: Resolved, written: list[Written], tally: Tally
) -> RecommendationsResponse:
    rows = [_recommendation(resolved, n, written[n] if written else None) for n in range(len(resolved.rows))]
    return RecommendationsResponse(
        id=request_id(),
        dataset=resolved.dataset,
        snapshot=resolved.snapshot,
        user_id=query.user.user_id,
        recommendations=rows,
        usage=tally.usage,
    )


def _recommendation(resolved: Resolved, n: int, written: Written | None) -> RecommendationRow:
    item = resolved.rows[n]
    row = RecommendationRow(rank=n + 1, item_id=item.item_id, title=item.title, score=item.score or 0.0)
    if written is None:
        return row
    explanation = written.explanation
    return row.model_copy(
        update={
            "explanation": explanation.text,
            "finish_reason": explanation.finish_reason,
            "tokens": explanation.tokens,
            "cached": written.cached,
            "evidence": _evidence(resolved.evidence[n], explanation),
        }
    )


def _explanation(body: ExplanationsRequest, resolved: Resolved, n: int, written: Written) -> ExplanationRow:
    pair, explanation = body.pairs[n], written.explanation
    return ExplanationRow(
        user_id=pair.user_id,
        item_id=pair.item_id,
        title=resolved.rows[n].title,
        explanation=explanation.text,
        finish_reason=explanation.finish_reason,  # pyright: ignore[reportArgumentType]
        tokens=explanation.tokens,
        cached=written.cached,
        cold_start=resolved.inputs[n].cold_start,
        signal=body.signal,
        evidence=_evidence(resolved.evidence[n], explanation),
    )


def _evidence(evidence: Evidence | None, explanation: Explanation) -> EvidenceRow | None:
    if evidence is None:
        return None
    similar = [
        SimilarUserRow(
            user_id=user.user_id,
            similarity=user.similarity,
            shared_items=[ItemReference(item_id=item.item_id, title=item.title) for item in user.shared_items],
        )
        for user in evidence.similar_users
    ]
    history = [
        HistoryRow(item_id=item.item_id, title=item.title, similarity=item.score or 0.0) for item in evidence.history
    ]
    effect = explanation.effect
    shown = (
        None
        if effect is None
        else SignalEffectRow(
            explanation=effect.explanation, changed=effect.changed, nats_per_token=effect.nats_per_token
        )
    )
    return EvidenceRow(score=evidence.score, similar_users=similar, history=history, signal_effect=shown)
