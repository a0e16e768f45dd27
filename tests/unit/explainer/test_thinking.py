"""Thinking never becomes part of an explanation: whole, open, or a tag that is half written."""

import asyncio
import itertools

import pytest

from xrec.explainer.engine import Progress, Result, Sampling, cut_at_sentence, finish, sentences
from xrec.explainer.thinking import close_thinking, without_thinking

TAGS = [
    ("<think>", "</think>"),
    ("<thinking>", "</thinking>"),
    ("<thought>", "</thought>"),
    ("<reasoning>", "</reasoning>"),
    ("<seed:think>", "</seed:think>"),
    ("[THINK]", "[/THINK]"),
]


@pytest.mark.parametrize(("start", "end"), TAGS)
def test_blocks_go(start, end):
    assert without_thinking(f"{start}\nHe likes\n\ntea.\n{end}\n\nGood tea.") == "Good tea."
    assert without_thinking(f"Good {start}one{end} tea {start}two{end}here.") == "Good tea here."
    assert without_thinking(f"Good tea. {start} But wait") == "Good tea."
    assert without_thinking(f"{start}He likes") == ""
    assert without_thinking(f"Good {end} tea.") == "Good tea."
    assert without_thinking(f"{start}{end}") == ""


def test_other_text_stays():
    for text in ("A <b>bold</b> place [1] for think tanks.", "3 < 4 and 5 > 4.", "Thinking </i> pays.", ""):
        assert without_thinking(text) == text


@pytest.mark.parametrize(("start", "end"), TAGS)
def test_a_growing_text_shows_no_character_of_it(start, end):
    whole = f"{start} Hm! {end} Good tea. {start}Wait. Wait!{end} Warm bread <3 too."
    shown = [without_thinking(whole[:length]) for length in range(len(whole) + 1)]
    assert shown[-1] == "Good tea. Warm bread <3 too."
    assert all(later.startswith(earlier) for earlier, later in itertools.pairwise(shown))
    assert all(shown[-1].startswith(text) for text in shown)


def test_limits_count_words_without_it():
    sampling = Sampling(max_words=4, max_new_tokens=50)
    thought = "<think>One two three. Four five six.</think> "
    assert finish(thought + "One two. Three four.", False, 20, sampling) == ("One two. Three four.", None)
    assert finish(thought + "One two. Three four. Five", False, 21, sampling) == ("One two. Three four.", "sentence")
    assert finish(thought + "One two.", True, 21, sampling) == ("One two.", "stop")
    assert finish("<think>One two three four five. Six", False, 20, sampling) == ("", None)
    assert finish("<think>One two three four five. Six", False, 50, sampling) == ("", "length")
    assert cut_at_sentence(thought + "Good tea. And <think>now. So") == ("Good tea.", "sentence")


def test_streams_never_show_it():
    whole = "<think>A. B. C.</think>Good tea. More <think>Hm. Hm.</think>bread. Yes"

    async def steps():
        for length in range(1, len(whole) + 1):
            text, _ = finish(whole[:length], False, length, Sampling(max_new_tokens=1000))
            yield Progress(text)
        text, reason = finish(whole, True, len(whole), Sampling(max_new_tokens=1000))
        yield Progress(text, Result(text, [], reason or "stop"))

    async def pieces() -> list[str]:
        return [piece async for piece in sentences(steps())]

    assert "".join(asyncio.run(pieces())) == "Good tea. More bread. Yes"


def test_a_prompt_that_is_inside_thinking_is_taken_out_of_it():
    assert close_thinking("assistant\n<think>\n") == "assistant\n<think>\n\n</think>\n\n"
    assert close_thinking("assistant<think>") == "assistant<think></think>"
    assert close_thinking("assistant\n<think>Hm.\n") == "assistant\n<think></think>"
    for closed in ("assistant\n", "assistant\n<think>\n\n</think>\n\n", "assistant</think>"):
        assert close_thinking(closed) == closed
