"""From what a model said to the text that is kept, or to the reason why nothing is."""

import re
from typing import Literal

from pydantic import BaseModel, ValidationError

from xrec.config.profile import TextKind
from xrec.profiles.client import Completion

Reason = Literal["not_json", "empty", "too_long", "refused", "cut_off"]

_FENCED = re.compile(r"```(?:json)?\s*(.*?)\s*```", re.DOTALL | re.IGNORECASE)
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
# Only how a refusal begins, and only with what it would not do: "I can't recommend it enough" is none.
_OPENING = (
    r"(?:(?:i['’]?m|i am)(?: \w+)? sorry|sorry|(?:my )?apologies|i apologi[sz]e|unfortunately)?[,.;:!]?\s*(?:but )?"
)
_WILL_NOT = r"(?:can['’]t|can ?not|won['’]t|will not|am unable to|am not able to)"
_DO = r"(?:assist|help(?! but)|comply|fulfil|provide|generate|create|write|complete|answer|produce|do (?:that|this))"
_REFUSAL = re.compile(
    rf"{_OPENING}(?:as an? (?:ai|artificial intelligence|(?:large )?language model)\b"
    rf"|i {_WILL_NOT} {_DO}\b|i['’]m (?:unable|not able) to {_DO}\b)",
    re.IGNORECASE,
)
_QUOTED_CHARACTERS = 80


class AnswerError(ValueError):
    """An answer is of no use; `reason` says why in one word, the message in detail."""

    def __init__(self, reason: Reason, detail: str):
        super().__init__(detail)
        self.reason: Reason = reason


class _Profile(BaseModel):
    profile: str


class _Explanation(BaseModel):
    explanation: str


def parse_answer(kind: TextKind, completion: Completion, max_words: int) -> str:
    """The text of an answer, on one line.

    The content must be the JSON object that was asked for, bare or in a code fence; further fields are ignored.

    Args:
        kind: what was asked for.
        completion: what the model answered.
        max_words: the longest text that is accepted, in words between white space.

    Raises:
        AnswerError: there is no such text.
    """
    content = (completion.content or "").strip()
    if completion.refusal or completion.finish_reason == "content_filter":
        raise AnswerError("refused", _quote(completion.refusal or "stopped by the endpoint's content filter"))
    if _REFUSAL.match(content):
        raise AnswerError("refused", _quote(content))
    if completion.finish_reason == "length":
        raise AnswerError("cut_off", f"the answer reached the limit of tokens, after {_quote(content)}")
    if not content:
        raise AnswerError("empty", "the model said nothing")
    text = " ".join(_CONTROL.sub(" ", _field(kind, content)).split())
    if not text:
        raise AnswerError("empty", "the text is empty")
    if _REFUSAL.match(text):
        raise AnswerError("refused", _quote(text))
    words = len(text.split())
    if words > max_words:
        raise AnswerError("too_long", f"{words} words, where {max_words} are allowed")
    return text


def _field(kind: TextKind, content: str) -> str:
    fenced = _FENCED.fullmatch(content)
    document = fenced.group(1) if fenced else content
    try:
        if kind == "explanation":
            return _Explanation.model_validate_json(document, strict=True).explanation
        return _Profile.model_validate_json(document, strict=True).profile
    except ValidationError as error:
        wrong = error.errors(include_url=False, include_input=False, include_context=False)[0]
        where = ".".join(str(part) for part in wrong["loc"])
        said = f"{where}: {wrong['msg']}" if where else wrong["msg"]
    raise AnswerError("not_json", f"{said}, in {_quote(content)}")


def _quote(text: str) -> str:
    line = " ".join(text.split())
    return repr(line if len(line) <= _QUOTED_CHARACTERS else line[: _QUOTED_CHARACTERS - 1] + "…")
