"""The text before and after a prompt's fields, in a backbone's own chat format.

The same on every day and without thinking: templates that print today's date are given a fixed one, and those that can
switch thinking off are told to.
"""

import re
from datetime import datetime
from typing import Any

from jinja2 import TemplateError

from xrec.explainer.thinking import close_thinking

# The day that the published Llama 3 templates fall back to where they know no date.
_DAY = datetime(2024, 7, 26)
_CONTENT_MARK = "\x00content\x00"
_OWN_NONE = re.compile(r"""(["'])none\1""")


def chat_format(tokenizer: Any, system: str) -> tuple[str, str]:
    """What comes before and after the content of the user's turn, up to where the model's answer begins.

    Args:
        tokenizer: a Hugging Face tokenizer with a chat template.
        system: the instruction, in a system turn of its own where the template has such a turn.

    Raises:
        ValueError: the template drops the instruction or the user's turn.
    """
    # The lowest effort that the template knows; templates ignore variables that they do not use.
    effort = "none" if _OWN_NONE.search(tokenizer.get_chat_template()) else "low"
    switches = {"enable_thinking": False, "thinking": False, "thinking_budget": 0, "reasoning_effort": effort}
    before, after = _render(tokenizer, system, switches | {"strftime_now": _DAY.strftime})
    return before, close_thinking(after)


def is_plain(tokenizer: Any, system: str) -> bool:
    """Whether `chat_format` gives what the template gives without any of its settings, on any day."""
    plain = _render(tokenizer, system, {"strftime_now": lambda _: "\x00day\x00"})
    return plain == chat_format(tokenizer, system)


def _render(tokenizer: Any, system: str, variables: dict[str, Any]) -> tuple[str, str]:
    # Some chat formats (Gemma, Mistral) have no system turn and say so by raising.
    turns = [{"role": "system", "content": system}, {"role": "user", "content": _CONTENT_MARK}]
    joined = [{"role": "user", "content": f"{system}\n{_CONTENT_MARK}"}]
    for messages in (turns, joined):
        try:
            text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True, **variables)
        except TemplateError:
            continue
        before, mark, after = text.partition(_CONTENT_MARK)
        # Many templates strip what they are given.
        if mark and _CONTENT_MARK not in after and system.strip() in before:
            return before, after
    raise ValueError(
        f"the chat template of tokenizer {tokenizer.name_or_path!r} drops the system instruction or the user's turn; "
        "use a backbone with a working template"
    )
