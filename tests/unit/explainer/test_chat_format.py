"""Chat formats of families that think or print the date: no thinking, and the same prompt on every day."""

from datetime import datetime

import pytest
import transformers.utils.chat_template_utils as chat_template_utils

from tests.random_models import train_tokenizer
from tests.unit.explainer import chat_templates
from xrec.config import PromptConfig
from xrec.explainer.chat_format import chat_format
from xrec.explainer.prompt import PromptBuilder

SYSTEM = "Be brief."
HEAD = "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\n"
TAIL = "<|im_end|>\n<|im_start|>assistant\n"


def tokenizer_with(template: str):
    tokenizer = train_tokenizer(["user record: item record: item name: system assistant think"] * 3, 320)
    tokenizer.chat_template = template
    return tokenizer


@pytest.mark.parametrize(
    ("template", "head", "tail"),
    [
        ("CHATML", HEAD, TAIL),
        ("EMPTY_BLOCK", HEAD, TAIL + "<think>\n\n</think>\n\n"),
        ("OPEN_BLOCK", HEAD, TAIL + "<think>\n\n</think>\n\n"),
        ("ALWAYS_OPEN", HEAD, TAIL + "<think>\n\n</think>\n\n"),
        ("ALWAYS_OPEN_IN_BRACKETS", HEAD, TAIL + "[THINK][/THINK]"),
        ("NAMED_THINKING", HEAD, TAIL + "</think>"),
        ("BUDGET", HEAD, TAIL + "<seed:think></seed:think>"),
        ("EFFORT", "2024-07-26 low\n" + HEAD, TAIL),
        ("STRICT_EFFORT", "Effort: none\n" + HEAD, TAIL),
        ("DATED", "Today: 26 Jul 2024\n" + HEAD, TAIL),
    ],
)
def test_prompts_end_where_the_answer_begins(template, head, tail):
    tokenizer = tokenizer_with(getattr(chat_templates, template))
    assert chat_format(tokenizer, SYSTEM) == (head, tail)
    # Template text and fields are tokenised apart, and a byte-level tokenizer loses none of either.
    builder = PromptBuilder(tokenizer, PromptConfig(system=SYSTEM))
    text = tokenizer.decode(builder.explain("Blue Door").token_ids, skip_special_tokens=False)
    assert text.startswith(head + " user record: ") and text.endswith(" item name: Blue Door" + tail)
    text = tokenizer.decode(builder.describe("item").token_ids, skip_special_tokens=False)
    assert text.endswith(tail)


def test_an_instruction_that_the_template_strips_is_still_found():
    # A prompt without a system turn of its own would begin with the template's default one.
    assert chat_format(tokenizer_with(chat_templates.CHATML), "\n Be brief. \n") == (HEAD, TAIL)


@pytest.mark.parametrize(
    "template",
    [
        "{% for m in messages %}{% if m['role'] == 'user' %}{{ m['content'] | upper }}{% endif %}{% endfor %}",
        "{% for m in messages %}{{ m['content'] }} {{ m['content'] }}{% endfor %}",
    ],
)
def test_a_template_that_changes_or_repeats_the_content_is_refused(template):
    with pytest.raises(ValueError, match="drops the system instruction or the user's turn"):
        chat_format(tokenizer_with(template), SYSTEM)


def test_the_day_changes_no_prompt(monkeypatch):
    def on(day: datetime) -> tuple[str, list[int], str]:
        class Clock:
            now = staticmethod(lambda: day)

        monkeypatch.setattr(chat_template_utils, "datetime", Clock)
        tokenizer = tokenizer_with(chat_templates.DATED)
        builder = PromptBuilder(tokenizer, PromptConfig(system=SYSTEM))
        turns = [{"role": "user", "content": "hello"}]
        own = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
        return own, builder.explain("Blue Door", "likes jazz", "a bar").token_ids, builder.hash

    before, after = on(datetime(2025, 1, 2)), on(datetime(2026, 12, 30))
    assert "02 Jan 2025" in before[0] and "30 Dec 2026" in after[0], "the template itself follows the clock"
    assert before[1:] == after[1:]
    # On the day that is given to the template, too, the hash is none of an adapter tuned on any other.
    assert on(datetime(2024, 7, 26))[1:] == before[1:]


# The hash of the default settings, without a limit, as versions computed it whose templates had no switches.
EARLIER = "44c1a925f2826b235955dbbec7a80b4ade1c880452a6d2ee1ea576e016af7565"


@pytest.mark.parametrize(
    ("template", "same"),
    [
        ("CHATML", True),
        ("NAMED_THINKING", True),
        ("EMPTY_BLOCK", False),
        ("OPEN_BLOCK", False),
        ("ALWAYS_OPEN", False),
        ("DATED", False),
    ],
)
def test_adapters_of_earlier_versions_fit_where_their_prompts_are_the_same(template, same):
    builder = PromptBuilder.from_settings(tokenizer_with(getattr(chat_templates, template)), {})
    assert (builder.hash == EARLIER) == same
