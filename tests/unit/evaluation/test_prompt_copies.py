"""Copies of the prompt, counted by hand."""

import pytest

from xrec.config import PromptConfig
from xrec.data.unpickling import load_plain
from xrec.evaluation.prompt_copies import PromptCopyScorer, copied_words, prompt_copies
from xrec.evaluation.prompt_texts import PromptTexts
from xrec.explainer.pairs import PairTexts

SYSTEM = "Explain why the user would enjoy the item within 50 words."
FIXED = [SYSTEM, "user record:", "item record:", "item name:", "user profile:", "item profile:"]
TITLE = "The Copper Kettle"
PROFILE = "Guests come to this place for its live jazz and its cold beer."  # 13 words


def copies(text: str, quoted=(TITLE, PROFILE)) -> tuple[float, float]:
    whole, profile = prompt_copies([text], FIXED, [list(quoted)])
    return float(whole[0]), float(profile[0])


def test_the_instruction_as_an_explanation():
    assert copied_words("The user would enjoy the item within 50 words.", [SYSTEM], 4).all()
    assert copies("The user would enjoy the item within 50 words.") == (1, 0)
    assert copies("Sure! THE USER would enjoy -- the item (within 50 words)") == (1, 0)


@pytest.mark.parametrize(
    ("text", "copy"),
    [
        # 6 words of the instruction, and so many more: 6 of 7, 6 of 8, 6 of 9.
        ("The user would enjoy the item greatly.", 1),
        ("The user would enjoy the item for jazz.", 0),
        ("The user would enjoy the item for live jazz.", 0),
        # Four of five words are 80 %.
        ("Surely the user would enjoy.", 1),
        # Runs of three words are too short.
        ("The user would like the item within reach.", 0),
        # Fewer than four words are a run themselves.
        ("the item", 1),
        ("50 words.", 1),
        ("live jazz", 0),
        ("", 0),
        ("...", 0),
    ],
)
def test_copies_of_the_instruction(text, copy):
    assert copies(text) == (copy, 0)


def test_which_words_are_copied():
    found = copied_words("Why the user would love the item within 50 words", [SYSTEM], 4)
    assert found.tolist() == [True] * 4 + [False] + [True] * 5
    assert copied_words("a text", [], 4).tolist() == [False, False]
    # A run may not leave out a word.
    assert not copied_words("explain why user would enjoy", [SYSTEM], 4).any()


def test_copies_of_a_profile_need_long_runs():
    assert copies(PROFILE) == (1, 1)
    assert copies("Guests come to this place for its live jazz.") == (1, 1)  # 9 words
    # A fact is no copy, even word for word: 7 words of the profile in a row.
    assert copies("this place for its live jazz and") == (0, 0)
    # 10 copied words of 12, and of 13.
    ten = "come to this place for its live jazz and its"
    assert copies(f"They {ten} food") == (1, 1)
    assert copies(f"They all {ten} food") == (0, 0)


def test_a_short_title_is_copied_as_a_whole_only():
    assert copies("The Copper Kettle") == (1, 1)
    assert copies("Copper Kettle pots") == (0, 0)
    # 6 words of the instruction and the title.
    assert copies("The user would enjoy the item The Copper Kettle") == (1, 0)


def test_a_repeated_prompt_is_a_copy_of_its_parts_together():
    text = f"{SYSTEM} item name: {TITLE} item profile: {PROFILE}"
    assert copies(text) == (1, 0)
    # What is not in this pair's prompt is not copied from it.
    assert copies(PROFILE, quoted=(TITLE,)) == (0, 0)


def test_columns_come_from_each_pairs_own_prompt():
    texts = PairTexts(["Title A", "Title B"], {0: "One two three four five six seven eight."}, {1: PROFILE})
    rows = {"user": [0, 0, 1], "item": [0, 1, 1], "explanation": [PROFILE, PROFILE, texts.user_profiles[0]]}
    scorer = PromptCopyScorer(PromptTexts(PromptConfig(), texts))
    assert scorer.score(rows)["profile_copy"].tolist() == [0, 1, 0]
    without = PromptCopyScorer(PromptTexts(PromptConfig(profiles=False), texts))
    assert without.score(rows)["profile_copy"].tolist() == [0, 0, 0]
    assert set(scorer.score(rows)) == set(scorer.columns)


def test_no_published_explanation_is_a_copy_of_the_instruction(release_data):
    """References and a large model's predictions say more than the instruction, whose words many of them open with."""
    for dataset in ("yelp", "amazon"):
        for name in ("tst_ref", "tst_pred"):
            texts = load_plain(release_data / "xrec-release" / dataset / f"{name}.pkl")
            whole, _ = prompt_copies(texts, FIXED, [[]] * len(texts))
            assert whole.sum() == 0
