"""The thinking of reasoning models: closed in a prompt, taken out of a text.

A reasoning model writes its thoughts between two tags before it answers. An explanation is the answer alone.
"""

import re

# The tags of the Qwen, DeepSeek, GLM and SmolLM families first, then rarer ones.
_TAGS = {
    "<think>": "</think>",
    "<thinking>": "</thinking>",
    "<thought>": "</thought>",
    "<reasoning>": "</reasoning>",
    "<seed:think>": "</seed:think>",
    "[THINK]": "[/THINK]",
}
_BLOCK = re.compile(
    "|".join(rf"\s*{re.escape(start)}.*?(?:{re.escape(end)}|\Z)\s*" for start, end in _TAGS.items()), re.DOTALL
)
_STRAY_END = re.compile("|".join(rf"\s*{re.escape(end)}\s*" for end in _TAGS.values()))
# Longest first, so that all of a tag's beginning goes.
_BEGINNINGS = sorted(
    {tag[:length] for pair in _TAGS.items() for tag in pair for length in range(1, len(tag))}, key=len, reverse=True
)


def without_thinking(text: str) -> str:
    """A text, finished or growing, without its thinking.

    Blocks between tags go, an open one to the text's end; so do an end tag without a beginning, and the first
    characters of a tag at the end of the text, of which the rest may be yet to come.
    """
    text = _STRAY_END.sub(" ", _BLOCK.sub(" ", text))
    beginning = next((b for b in _BEGINNINGS if text.endswith(b)), "")
    return text.removesuffix(beginning).strip()


def close_thinking(text: str) -> str:
    """The end of a prompt, with an empty block of thinking where it would leave the model inside an open one."""
    for start, end in _TAGS.items():
        if text.rfind(start) > text.rfind(end):
            before, _, begun = text.rpartition(start)
            line = "\n" if begun.startswith("\n") else ""
            return f"{before}{start}{2 * line}{end}{2 * line}"
    return text
