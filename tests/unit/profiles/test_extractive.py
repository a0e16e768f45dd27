"""The extractive writer: plain sentences within the limit, always the same, about what the texts are about."""

import asyncio
import json
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.review_world import make_workspace
from xrec import tables
from xrec.config import PreprocessConfig, SampleConfig
from xrec.config.profile import TEXT_KINDS, ProfileConfig
from xrec.data.sample import make_world, world_tables
from xrec.profiles.extractive import ExtractiveWriter, listed, within
from xrec.profiles.phrases import PhraseExtractor, sentences
from xrec.profiles.records import record_batches
from xrec.workspace import Workspace


@pytest.fixture(scope="module")
def writer():
    return ExtractiveWriter(50)


@pytest.fixture(scope="module")
def extractor():
    return PhraseExtractor()


def write(writer, kind, *records):
    return asyncio.run(writer.write(kind, [json.dumps(record) for record in records]))


# Phrases -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The garlic knots were warm. We sat by the window.", "garlic knots"),
        ("We waited an hour, but the lamb curry was worth it.", "lamb curry"),
        ("My sister told me to go. I loved their apple cider and went home happy.", "apple cider"),
        ("The service desk was rude and slow. The battery life is superb!", "battery life"),
        ("THE LOBSTER ROLLS ARE AMAZING!!!", "lobster rolls"),
        ("The farmer's market opens early.", "farmer's market"),
        ("Ordered Truffle Mushroom Butter and ate all of it.", "Truffle Mushroom Butter"),
        ("Great. The staff!", "staff"),
    ],
)
def test_the_first_phrase_is_the_thing_that_is_praised(extractor, text, expected):
    assert extractor.choose(text, 1) == [expected]


def test_phrases_share_no_word_and_stand_in_the_text(extractor):
    text = (
        "The iced coffee is strong. Their cold iced coffee comes with oat milk, and the almond croissants are flaky. "
        "Parking was terrible. The back garden has wooden tables."
    )
    for count in range(1, 8):
        phrases = extractor.choose(text, count)
        assert len(phrases) <= count
        words = [word.lower().rstrip("s") for phrase in phrases for word in phrase.split()]
        assert len(words) == len(set(words))
        assert all(phrase.lower() in text.lower() for phrase in phrases)
    assert "oat milk" in phrases and "almond croissants" in phrases and "Parking" not in phrases[:3]


@pytest.mark.parametrize("text", ["", " ", "...", "!!! ???", "The and of it was.", "We went there again and again."])
def test_a_text_without_things_has_no_phrase(extractor, text):
    assert extractor.choose(text, 3) == []


@settings(max_examples=150, deadline=None)
@given(text=st.text(max_size=300))
def test_any_text_is_read_and_gives_the_same_phrases_again(extractor, text):
    phrases = extractor.choose(text, 3)
    assert phrases == extractor.choose(text, 3)
    assert all(phrase.strip() and "\n" not in phrase for phrase in phrases)


def test_sentences_end_at_marks_and_line_breaks():
    assert sentences(' One. "Two!" Three?\n\nfour\n ... \n 5 ') == ["One.", '"Two!', "Three?", "four", "5"]


# Texts ---------------------------------------------------------------------------------------------------------------

REVIEW = "The garlic knots were warm. We sat by the window. The staff remembered us. Their lemon tart is light."


def test_explanations_are_in_the_form_that_is_asked_of_language_models(writer):
    [answer] = write(writer, "explanation", {"review": REVIEW})
    assert re.fullmatch(r"The user would enjoy .*because.*garlic knots.*lemon tart.*\.", answer.text)
    assert (answer.status, answer.error, answer.tokens_in, answer.tokens_out, answer.attempts) == ("ok", None, 0, 0, 0)
    assert re.fullmatch(r"extractive-yake-\d+\.\d+.*", answer.model)


def test_an_item_profile_draws_on_reviews_and_metadata(writer):
    record = {
        "title": "Blue Door",
        "attributes": {"categories": "Bakeries, Cafes, Food", "city": "Reno", "stars": 4.5, "open": True, "url": "a/b"},
        "description": "A corner bakery with a garden. Since 1950.",
        "reviews": [REVIEW, "Best garlic knots in Reno! The lemon tart is my favorite.", "The garlic knots again."],
    }
    text = write(writer, "item_profile", record)[0].text
    assert text.index("garlic knots") < text.index("lemon tart") < text.index("A corner bakery with a garden.")
    assert text.endswith("Blue Door is listed under Bakeries, Cafes, Food and Reno.")
    assert "Since 1950" not in text and "users who" in text.lower()
    bare = write(writer, "item_profile", {"title": "Anker USB C Wall Charger"})[0].text
    assert bare == "Users who look for Anker USB C Wall Charger would enjoy this item."
    described = write(writer, "item_profile", {"title": "", "description": record["description"]})[0].text
    assert "corner bakery" in described


def test_a_user_profile_prefers_the_users_own_words_and_names_no_title(writer):
    items = [
        {"title": "Blue Door", "profile": "Users who value garlic knots would enjoy Blue Door.", "review": REVIEW},
        {"title": "Red Door", "profile": "Users who value live music would enjoy Red Door.", "review": "Lemon tart!"},
        {"title": "Lemon House", "review": "Their lemon tart and the garlic knots were excellent."},
    ]
    text = write(writer, "user_profile", {"items": items})[0].text
    assert "garlic knots" in text and "Door" not in text
    assert "user" in text and "users" not in text
    assert write(writer, "user_profile", {"items": [{"title": "Blue Door"}, {"title": "Red Door"}]})[0].text == (
        "The user would enjoy items such as Blue Door and Red Door."
    )


EMPTY = {
    "explanation": [{"review": "!!!"}, {"review": ""}],
    "item_profile": [{"title": "?"}, {"title": "", "description": "...", "reviews": ["!"]}],
    "user_profile": [{"items": [{"title": "-", "review": "?"}]}, {"items": []}],
}


@pytest.mark.parametrize("kind", TEXT_KINDS)
def test_only_records_without_words_fail(writer, kind):
    for answer in write(writer, kind, *EMPTY[kind]):
        assert (answer.text, answer.status) == ("", "failed")
        assert answer.error is not None and answer.error.startswith("empty: ")
        assert answer.tokens_in == answer.tokens_out == 0


@pytest.mark.parametrize("limit", [1, 5, 8, 12, 50])
@pytest.mark.parametrize("text", [REVIEW, "Great", "We went there again and again.", "寿司は美味しい。", "ok " * 400])
def test_every_record_with_words_gets_a_sentence_within_the_limit(limit, text):
    writer = ExtractiveWriter(limit)
    records = {
        "explanation": {"review": text},
        "item_profile": {"title": text, "description": text, "reviews": [text] * 3},
        "user_profile": {"items": [{"title": text, "review": text, "profile": text}]},
    }
    for kind, record in records.items():
        [answer] = write(writer, kind, record)
        assert answer.status == "ok" and 0 < len(answer.text.split()) <= limit
        assert answer.text[-1] in ".!?。" and "\n" not in answer.text
        assert [a.text for a in write(ExtractiveWriter(limit), kind, record, record)] == [answer.text] * 2


def test_concurrent_calls_give_what_single_ones_give(writer):
    records = [[json.dumps({"review": f"{REVIEW} Number {n} of their soup list."})] * 3 for n in range(8)]

    async def together():
        return await asyncio.gather(*(writer.write("explanation", block) for block in records))

    single = [[a.text for a in asyncio.run(writer.write("explanation", block))] for block in records]
    assert [[a.text for a in answers] for answers in asyncio.run(together())] == single


def test_lists_and_limits():
    assert [listed(p) for p in (["a"], ["a", "b"], ["a", "b", "c"])] == ["a", "a and b", "a, b and c"]
    assert within([], 5) == ""
    assert within(["one two three.", "four five.", "six."], 4) == "one two three. six."
    assert within(["one two, three four."], 2) == "one two."


# Known truth ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def sample(tmp_path_factory):
    world = make_world(SampleConfig(users=120, items=200, interactions_per_user=5, features=24, seed=5))
    source = {name: tables.validate(name, table) for name, table in world_tables(world).items()}
    return make_workspace(Workspace(tmp_path_factory.mktemp("w")), source, PreprocessConfig())


def test_explanations_of_the_sample_world_name_the_true_feature_and_no_other(sample, writer):
    features = {r["feature"] for r in sample.read_table("preprocess", "explanations").to_pylist()}
    assert len(features) == 24
    right = rows = 0
    for batch in record_batches(sample, ProfileConfig(), "explanation", 100):
        answers = asyncio.run(writer.write("explanation", batch["record"].to_pylist()))
        for row, answer in zip(batch.to_pylist(), answers, strict=True):
            named = {f for f in features if f in answer.text.lower()}
            right, rows = right + (named == {row["feature"]}), rows + 1
    assert rows > 500
    assert right / rows > 0.97


def test_profiles_of_the_sample_world_name_features(sample, writer):
    features = {r["feature"] for r in sample.read_table("preprocess", "explanations").to_pylist()}
    for kind in ("item_profile", "user_profile"):
        [batch] = list(record_batches(sample, ProfileConfig(), kind, 1000))
        answers = asyncio.run(writer.write(kind, batch["record"].to_pylist()[:60]))
        assert all(answer.status == "ok" for answer in answers)
        assert sum(any(f in answer.text.lower() for f in features) for answer in answers) > 0.95 * len(answers)


def test_real_reviews_get_explanations(release_data, writer):
    lines = (release_data / "xrec-release" / "prompts" / "exp_prompts.json").read_text().splitlines()
    reviews = [json.loads(line)["feedback"]["review"] for line in lines]
    for review, answer in zip(reviews, write(writer, "explanation", *({"review": r} for r in reviews)), strict=True):
        opening = (
            r"The user would enjoy this item because (of|it offers|they (care about|appreciate|look for|value))? ?"
        )
        stated = re.sub(opening, "", answer.text.removesuffix("."))
        reasons = re.split(r", | and ", stated)
        assert answer.status == "ok" and len(reasons) in (2, 3)
        plain = " ".join(review.lower().split())
        assert all(reason.lower() in plain for reason in reasons)
