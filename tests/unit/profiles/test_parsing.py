"""Answers: what is accepted, and which word stands for each way of being of no use."""

import json

import pytest

from xrec.profiles.client import Completion
from xrec.profiles.parsing import AnswerError, parse_answer


def completion(content: str | None, refusal: str | None = None, finish_reason: str = "stop") -> Completion:
    return Completion(content, refusal, finish_reason, "m", 1, 1)


@pytest.mark.parametrize(
    ("kind", "content", "text"),
    [
        ("item_profile", '{"profile": "Fans of tea."}', "Fans of tea."),
        ("user_profile", ' {"profile": "Likes\\n two  lines\\u0000 here"} \n', "Likes two lines here"),
        ("explanation", '{"explanation": "The user would enjoy it."}', "The user would enjoy it."),
        ("item_profile", '```json\n{"profile": "Fenced."}\n```', "Fenced."),
        ("item_profile", '```\n{"profile": "Fenced {too}."}\n```\n', "Fenced {too}."),
        ("item_profile", '{"profile": "With more.", "words": 2}', "With more."),
        ("item_profile", '{"profile": "日本 😀"}', "日本 😀"),
    ],
)
def test_a_json_object_is_accepted(kind, content, text):
    assert parse_answer(kind, completion(content), 50) == text


@pytest.mark.parametrize(
    "content",
    [
        'Here it is: {"profile": "text"}',
        '{"profile": "text"} Hope this helps!',
        '{"explanation": "the wrong field"}',
        '{"profile": 3}',
        '{"profile": null}',
        '{"profile": ["a"]}',
        '["text"]',
        "plain text",
        '{"profile": "not closed',
        '{"profile": "\\ud800"}',
        "```json\n```",
    ],
)
def test_anything_else_is_not_json(content):
    with pytest.raises(AnswerError) as caught:
        parse_answer("item_profile", completion(content), 50)
    assert caught.value.reason == "not_json"


@pytest.mark.parametrize("content", [None, "", "  \n", '{"profile": ""}', '{"profile": " \\n\\t"}'])
def test_nothing_said_is_empty(content):
    with pytest.raises(AnswerError) as caught:
        parse_answer("item_profile", completion(content), 50)
    assert caught.value.reason == "empty"


def test_words_are_counted_between_white_space():
    assert parse_answer("item_profile", completion(json.dumps({"profile": "w " * 50})), 50).count("w") == 50
    with pytest.raises(AnswerError, match="51 words, where 50") as caught:
        parse_answer("item_profile", completion(json.dumps({"profile": "w " * 51})), 50)
    assert caught.value.reason == "too_long"


def test_an_answer_that_reached_the_token_limit_is_cut_off():
    with pytest.raises(AnswerError) as caught:
        parse_answer("item_profile", completion('{"profile": "begun and', finish_reason="length"), 50)
    assert caught.value.reason == "cut_off"


@pytest.mark.parametrize(
    "answer",
    [
        completion(None, refusal="I can't do that."),
        completion(None, finish_reason="content_filter"),
        completion('{"profile": "cut"}', finish_reason="content_filter"),
        completion("I'm sorry, but I can't assist with that request."),
        completion('{"profile": "I’m sorry, but I can’t help with that."}'),
        completion('{"profile": "Sorry, I cannot provide a profile."}'),
        completion('{"profile": "As an AI language model, I have no opinion."}'),
        completion('{"profile": "I am unable to generate this content."}'),
        completion('{"profile": "I\'m not able to comply."}'),
    ],
)
def test_refusals_are_recognised(answer):
    with pytest.raises(AnswerError) as caught:
        parse_answer("item_profile", answer, 50)
    assert caught.value.reason == "refused"


@pytest.mark.parametrize(
    "text",
    [
        "Users who can't help but love sorry romances.",
        "I can't help but admire this place.",
        "I cannot recommend this cafe enough.",
        "Sorry, no reservations: users who enjoy queues would enjoy it.",
        "Unfortunately named, the bar draws fans of craft beer.",
        "As an airy studio, it suits those who do yoga.",
        "Fans of stories in which an AI says it can't assist.",
    ],
)
def test_a_text_is_no_refusal_because_of_a_word(text):
    assert parse_answer("item_profile", completion(json.dumps({"profile": text})), 50) == text


def test_what_the_model_said_is_quoted_in_short():
    with pytest.raises(AnswerError) as caught:
        parse_answer("item_profile", completion("nonsense " * 200), 50)
    assert "nonsense" in str(caught.value) and len(str(caught.value)) < 200
