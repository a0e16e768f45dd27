"""What an engine is: token ids, reserved positions and adapted vectors in, explanations out.

Engines (`generation.py`, `vllm_engine.py`) know nothing of users, graphs or adapters, so one language model can serve
any number of adapters and datasets at once. Shapes: H is the backbone's hidden size.
"""

import re
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import torch

from xrec.explainer.thinking import without_thinking

FinishReason = Literal["stop", "sentence", "length"]
# Logits divided by less overflow; vLLM, too, goes no lower.
LEAST_TEMPERATURE = 0.01
_SENTENCE_END = re.compile(r"[.!?][\"')\]]*(?=\s|$)")


@dataclass(frozen=True)
class Sampling:
    """How to generate.

    Attributes:
        max_words: generation stops at the end of a sentence within this many words.
        max_new_tokens: upper bound in tokens.
        temperature: 0 is greedy; otherwise at least `LEAST_TEMPERATURE`.
        top_p: smallest probability mass to sample from.
        seed: of this request's draws, which depend on nothing else.
    """

    max_words: int = 50
    max_new_tokens: int = 128
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("max_words", "max_new_tokens"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} = {getattr(self, name)} must be at least 1")
        if self.temperature != 0 and not self.temperature >= LEAST_TEMPERATURE:
            raise ValueError(
                f"temperature = {self.temperature} must be 0, which is greedy, or at least {LEAST_TEMPERATURE}"
            )
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p = {self.top_p} must lie in (0, 1]")


@dataclass
class Request:
    """One prompt.

    Attributes:
        token_ids: the prompt, up to the explanation's boundary.
        user_positions, item_positions: the reserved positions in it.
        user_vector, item_vector: `[H]` adapted vectors; None switches that side's signal off.
        sampling: how to generate.
    """

    token_ids: list[int]
    user_positions: list[int] = field(default_factory=list)
    item_positions: list[int] = field(default_factory=list)
    user_vector: torch.Tensor | None = None
    item_vector: torch.Tensor | None = None
    sampling: Sampling = field(default_factory=Sampling)


@dataclass
class Result:
    """One explanation.

    Attributes:
        text: at most `max_words` words, without thinking.
        token_ids: every token generated, those after the cut included.
        finish_reason: `stop` (the model ended), `sentence` (cut at a sentence's end), `length` (cut inside one).
    """

    text: str
    token_ids: list[int]
    finish_reason: FinishReason


@dataclass
class Progress:
    """How far one explanation is.

    Attributes:
        text: all that was generated, but for thinking; a later cut at a sentence's end may take some of it back.
        result: the whole, once it is finished.
    """

    text: str
    result: Result | None = None


class Engine(Protocol):
    """The seam between XRec and whatever runs the language model.

    Attributes:
        tokenizer: the model's.
    """

    tokenizer: Any

    def generate(self, requests: Sequence[Request]) -> list[Result]:
        """Explanations, in the order of the requests. ValueError names a request that is malformed."""
        ...

    def stream(self, request: Request) -> AsyncIterator[str]:
        """Pieces of one explanation; joined they are `Result.text`."""
        ...

    def logprobs(self, requests: Sequence[Request], targets: Sequence[list[int]]) -> list[torch.Tensor]:
        """For each request, the natural-log probability of every token of its target: float32 `[len(target)]`."""
        ...

    def close(self) -> None:
        """End whatever processes it has; it answers no more."""
        ...


class LiveEngine(Engine, Protocol):
    """An engine for many callers at once: their requests share its running batch.

    Attributes:
        unfinished: requests that wait or run now.
        failure: why it will never answer again; None while it may.
    """

    @property
    def unfinished(self) -> int: ...

    @property
    def failure(self) -> str | None: ...

    async def complete(self, request: Request) -> Result:
        """One explanation; cancelling the call ends its generation. ValueError: the request is malformed."""
        ...

    def progress(self, request: Request) -> AsyncGenerator[Progress, None]:
        """One explanation as it grows, the last with its result; closing the iterator ends the generation."""
        ...


def check_request(request: Request, index: int, hidden_size: int, reserved_id: int) -> None:
    """Refuse a malformed request.

    Args:
        request: to be looked at.
        index: of the request, for the message.
        hidden_size: H.
        reserved_id: the id that stands at reserved positions, and nowhere else.

    Raises:
        ValueError: naming the request's index, the field and the remedy.
    """
    if not request.token_ids:
        raise ValueError(f"request {index}: token_ids is empty; build it with PromptBuilder")
    declared = _check_positions(request, index, reserved_id)
    for side in ("user", "item"):
        positions, vector = getattr(request, f"{side}_positions"), getattr(request, f"{side}_vector")
        if vector is None:
            continue
        if not positions:
            raise ValueError(f"request {index}: {side}_vector is given, but the prompt has no {side}_positions for it")
        if vector.shape != (hidden_size,):
            raise ValueError(f"request {index}: {side}_vector has shape {tuple(vector.shape)}, not ({hidden_size},)")
        if not torch.isfinite(vector).all():
            raise ValueError(f"request {index}: {side}_vector holds values that are not finite; check the embeddings")
        if not vector.any():
            raise ValueError(f"request {index}: {side}_vector is all zeros; give None to switch that side off")
    undeclared = [p for p, token in enumerate(request.token_ids) if token == reserved_id and p not in declared]
    if undeclared:
        raise ValueError(
            f"request {index}: token_ids has the reserved id {reserved_id} at {undeclared[0]}, which is neither in "
            "user_positions nor in item_positions; no text becomes that id: build it with PromptBuilder"
        )


def _check_positions(request: Request, index: int, reserved_id: int) -> dict[int, str]:
    """The side of every reserved position."""
    declared: dict[int, str] = {}
    for side in ("user", "item"):
        for position in getattr(request, f"{side}_positions"):
            if not 0 <= position < len(request.token_ids):
                raise ValueError(
                    f"request {index}: {side}_positions has {position}, outside 0..{len(request.token_ids) - 1}"
                )
            if request.token_ids[position] != reserved_id:
                raise ValueError(
                    f"request {index}: {side}_positions has {position}, where token_ids has "
                    f"{request.token_ids[position]}, not the reserved id {reserved_id}; build it with PromptBuilder"
                )
            if position in declared:
                raise ValueError(
                    f"request {index}: position {position} is in {side}_positions and in {declared[position]}_positions"
                )
            declared[position] = side
    return declared


def end_ids(tokenizer: Any, configured: int | list[int] | None) -> list[int]:
    """Tokens that end a turn.

    Args:
        tokenizer: whose end-of-sequence token comes first.
        configured: what the model's own generation settings name.

    Raises:
        ValueError: there is none.
    """
    extra = configured if isinstance(configured, list) else [configured]
    found = [i for i in (tokenizer.eos_token_id, *extra) if i is not None]
    if not found:
        raise ValueError(f"tokenizer {tokenizer.name_or_path!r} has no end-of-sequence token; use one that has")
    return list(dict.fromkeys(found))


def finish(text: str, ended: bool, tokens: int, sampling: Sampling) -> tuple[str, FinishReason | None]:
    """What an explanation has become after another token: its text, and why it ends here (None: it goes on).

    Thinking is no part of the text, nor of its words, but its tokens count.

    Args:
        text: all that was generated.
        ended: whether the last token ends a turn.
        tokens: generated so far.
        sampling: the limits.
    """
    text = without_thinking(text)
    cut = limit_words(text, sampling.max_words)
    if cut is None and ended:
        return text, "stop"
    if cut is None and tokens >= sampling.max_new_tokens:
        cut = cut_at_sentence(text)
    return cut if cut is not None else (text, None)


def limit_words(text: str, max_words: int) -> tuple[str, FinishReason] | None:
    """Cut a text that has grown past `max_words` words; None while it has not.

    Returns:
        The whole sentences that fit and `sentence`; or, where not even one fits, the first `max_words` words and
        `length`.
    """
    words = list(re.finditer(r"\S+", text))
    if len(words) <= max_words:
        return None
    return cut_at_sentence(text[: words[max_words - 1].end()])


def cut_at_sentence(text: str) -> tuple[str, FinishReason]:
    """The text up to its last sentence end and `sentence`; the text itself and `length` where it has none.

    Thinking is no part of either.
    """
    text = without_thinking(text)
    ends = list(_SENTENCE_END.finditer(text))
    return (text[: ends[-1].end()], "sentence") if ends else (text, "length")


def complete_sentences(text: str) -> str:
    """The part of a growing text that a later cut can no longer take back: its sentences already followed by more."""
    ends = [m.end() for m in _SENTENCE_END.finditer(text) if m.end() < len(text)]
    return text[: ends[-1]] if ends else ""


async def sentences(steps: AsyncIterator[Progress]) -> AsyncIterator[str]:
    """Pieces of a growing explanation, a whole sentence at a time; joined they are `Result.text`."""
    sent = 0
    async for progress in steps:
        text = progress.text
        ready = len(text) if progress.result else len(complete_sentences(text))
        if ready > sent:
            yield text[sent:ready]
            sent = ready
