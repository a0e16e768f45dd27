"""Copies of the prompt: explanations that say nothing but what the language model has just read.

A language model that makes little of a pair's vectors falls back on its prompt: it repeats the instruction as if it
were an explanation ("The user would enjoy the item within 50 words."), or a profile word for word.

A word of an explanation is copied where it stands in a run of consecutive words that a text of the prompt has in the
same order: at least 4 words of the instruction or of a field's label, at least 8 of a title or profile, from which an
explanation may well take a fact. Of a text shorter than that, the whole; and an explanation of fewer than 4 words is a
run itself. Case and punctuation do not count. An explanation is a copy where at least 80 % of its words are copied: of
the default instruction, "The user would enjoy the item" may open an explanation that goes on for three words more.
"""

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np

from xrec.evaluation.distinct import words
from xrec.evaluation.prompt_texts import PromptTexts
from xrec.evaluation.scorers import Rows

FIXED_RUN, QUOTED_RUN = 4, 8
COPIED_SHARE = 0.8
# Texts whose runs are remembered, a few hundred KB each at most: rows of a user follow each other.
_REMEMBERED = 1024


def copied_words(text: str, sources: Sequence[str], run: int) -> np.ndarray:
    """Which words of a text are copied.

    Args:
        text: n words, whatever stands between them.
        sources: texts that it may be copied from.
        run: consecutive words from which on they count as copied; of a source shorter than that, all of them.

    Returns:
        `[n]` bool.
    """
    own = words(text)
    copied = np.zeros(len(own), bool)
    for source in sources:
        length, known = _runs(source, run)
        for start in range(len(own) - length + 1 if known else 0):
            if tuple(own[start : start + length]) in known:
                copied[start : start + length] = True
    return copied


def prompt_copies(
    texts: Sequence[str], fixed: Sequence[str], quoted: Sequence[Sequence[str]]
) -> tuple[np.ndarray, np.ndarray]:
    """Whether explanations say nothing but what their prompts say.

    Args:
        texts: n explanations; one without a word copies nothing.
        fixed: what all prompts say, the instruction and labels.
        quoted: what the n prompts quote, the title and profiles.

    Returns:
        `prompt_copy` and `profile_copy`, each `[n]` float64 of 0 and 1: copies of all that stands in the prompt, and
        of what it quotes alone.
    """
    whole, profile = np.zeros(len(texts)), np.zeros(len(texts))
    for row, (text, own) in enumerate(zip(texts, quoted, strict=True)):
        of_quoted = copied_words(text, own, QUOTED_RUN)
        if not len(of_quoted):
            continue
        of_fixed = copied_words(text, fixed, min(FIXED_RUN, len(of_quoted)))
        profile[row] = of_quoted.mean() >= COPIED_SHARE
        whole[row] = (of_quoted | of_fixed).mean() >= COPIED_SHARE
    return whole, profile


class PromptCopyScorer:
    """Copies of the prompt as columns of `scores`.

    Args:
        prompts: what the prompts behind the explanations say.
    """

    columns: tuple[str, ...] = ("prompt_copy", "profile_copy")

    def __init__(self, prompts: PromptTexts):
        self.prompts = prompts

    def score(self, rows: Rows) -> dict[str, np.ndarray]:
        quoted = [self.prompts.quoted(user, item) for user, item in zip(rows["user"], rows["item"], strict=True)]
        found = prompt_copies(rows["explanation"], self.prompts.fixed, quoted)
        return dict(zip(self.columns, found, strict=True))

    def facts(self) -> dict[str, Any]:
        return {"fixed_run": FIXED_RUN, "quoted_run": QUOTED_RUN, "share": COPIED_SHARE}


@lru_cache(_REMEMBERED)
def _runs(source: str, run: int) -> tuple[int, frozenset[tuple[str, ...]]]:
    """The length of a source's runs, and every one of them."""
    own = words(source)
    length = min(run, len(own))
    if not length:
        return 0, frozenset()
    return length, frozenset(tuple(own[start : start + length]) for start in range(len(own) - length + 1))
