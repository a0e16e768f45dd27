"""What an engine is: token ids, reserved positions and adapted vectors in, explanations out.

Engines (`generation.py` here; others later) know nothing of users, graphs or adapters, so one language model can
serve any number of adapters and datasets at once. Shapes: H is the backbone's hidden size.
"""

import re
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

import torch

FinishReason = Literal["stop", "sentence", "length"]
_SENTENCE_END = re.compile(r"[.!?][\"')\]]*(?=\s|$)")


@dataclass(frozen=True)
class Sampling:
    """How to generate.

    Attributes:
        max_words: generation stops at the end of a sentence within this many words.
        max_new_tokens: upper bound in tokens.
        temperature: 0 is greedy.
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
        if self.temperature < 0:
            raise ValueError(f"temperature = {self.temperature} must not be negative; 0 is greedy")
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
        text: at most `max_words` words.
        token_ids: every token generated, those after the cut included.
        finish_reason: `stop` (the model ended), `sentence` (cut at a sentence's end), `length` (cut inside one).
    """

    text: str
    token_ids: list[int]
    finish_reason: FinishReason


class Engine(Protocol):
    """The seam between XRec and whatever runs the language model."""

    def generate(self, requests: Sequence[Request]) -> list[Result]:
        """Explanations, in the order of the requests. ValueError names a request that is malformed."""
        ...

    def stream(self, request: Request) -> AsyncIterator[str]:
        """Pieces of one explanation; joined they are `Result.text`."""
        ...

    def logprobs(self, requests: Sequence[Request], targets: Sequence[list[int]]) -> list[torch.Tensor]:
        """For each request, the natural-log probability of every token of its target: float32 `[len(target)]`."""
        ...


def check_request(request: Request, index: int, hidden_size: int) -> None:
    """Refuse a malformed request.

    Raises:
        ValueError: naming the request's index, the field and the remedy.
    """
    if not request.token_ids:
        raise ValueError(f"request {index}: token_ids is empty; build it with PromptBuilder")
    for side in ("user", "item"):
        positions, vector = getattr(request, f"{side}_positions"), getattr(request, f"{side}_vector")
        outside = [p for p in positions if not 0 <= p < len(request.token_ids)]
        if outside:
            raise ValueError(
                f"request {index}: {side}_positions has {outside[0]}, outside 0..{len(request.token_ids) - 1}"
            )
        if vector is None:
            continue
        if not positions:
            raise ValueError(f"request {index}: {side}_vector is given, but the prompt has no {side}_positions for it")
        if vector.shape != (hidden_size,):
            raise ValueError(f"request {index}: {side}_vector has shape {tuple(vector.shape)}, not ({hidden_size},)")
        if not torch.isfinite(vector).all():
            raise ValueError(f"request {index}: {side}_vector holds values that are not finite; check the embeddings")


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
    """The text up to its last sentence end and `sentence`; the text itself and `length` where it has none."""
    ends = list(_SENTENCE_END.finditer(text))
    return (text[: ends[-1].end()].strip(), "sentence") if ends else (text.strip(), "length")


def complete_sentences(text: str) -> str:
    """The part of a growing text that a later cut can no longer take back: its sentences already followed by more."""
    ends = [m.end() for m in _SENTENCE_END.finditer(text) if m.end() < len(text)]
    return text[: ends[-1]] if ends else ""
