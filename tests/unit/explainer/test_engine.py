"""Word limits, sentence ends, and the refusal of malformed requests."""

import pytest
import torch

from xrec.explainer.engine import (
    Request,
    Sampling,
    check_request,
    complete_sentences,
    cut_at_sentence,
    end_ids,
    finish,
    limit_words,
)

RESERVED = 2


@pytest.mark.parametrize(
    ("text", "limit", "expected"),
    [
        ("One two. Three four.", 4, None),
        ("One two. Three four. Five", 4, ("One two. Three four.", "sentence")),
        ("One two. Three four five", 4, ("One two.", "sentence")),
        ("One two three four five", 4, ("One two three four", "length")),
        ('She said "go!" Then they left', 4, ('She said "go!"', "sentence")),
        ("It costs 3.50 dollars here now", 4, ("It costs 3.50 dollars", "length")),
        ("", 1, None),
    ],
)
def test_limit_words(text, limit, expected):
    assert limit_words(text, limit) == expected


def test_cut_at_sentence():
    assert cut_at_sentence("A b. C d! e f") == ("A b. C d!", "sentence")
    assert cut_at_sentence("no end ") == ("no end", "length")


def test_complete_sentences_are_those_followed_by_more():
    assert complete_sentences("A b. C d") == "A b."
    assert complete_sentences("A b. C d.") == "A b."
    assert complete_sentences("A b") == ""


def request(**changes) -> Request:
    values = {"token_ids": [1, 2, 3], "user_positions": [1], "user_vector": torch.ones(4)}
    return Request(**(values | changes))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"token_ids": []}, "request 7: token_ids is empty"),
        ({"user_positions": [3]}, "request 7: user_positions has 3, outside 0..2"),
        ({"user_positions": []}, "request 7: user_vector is given, but the prompt has no user_positions"),
        ({"user_positions": [0]}, "request 7: user_positions has 0, where token_ids has 1, not the reserved id 2"),
        ({"item_positions": [1]}, "request 7: position 1 is in item_positions and in user_positions"),
        ({"token_ids": [1, 2, 2]}, "request 7: token_ids has the reserved id 2 at 2, which is neither in"),
        ({"user_vector": torch.zeros(4)}, "request 7: user_vector is all zeros; give None"),
        ({"user_vector": torch.zeros(5)}, r"request 7: user_vector has shape \(5,\), not \(4,\)"),
        ({"user_vector": torch.tensor([0, 1, float("nan"), 2])}, "request 7: user_vector holds values that are not"),
    ],
)
def test_malformed_requests_are_refused(changes, message):
    check_request(request(), 0, 4, RESERVED)
    with pytest.raises(ValueError, match=message):
        check_request(request(**changes), 7, 4, RESERVED)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("max_words", 0),
        ("max_new_tokens", 0),
        ("temperature", -1.0),
        ("temperature", 1e-9),
        ("top_p", 0.0),
        ("top_p", 1.1),
    ],
)
def test_bad_sampling_is_refused(field, value):
    with pytest.raises(ValueError, match=field):
        Sampling(**{field: value})


@pytest.mark.parametrize(
    ("text", "ended", "tokens", "expected"),
    [
        (" One two. ", False, 3, ("One two.", None)),
        ("One two. Three", True, 4, ("One two. Three", "stop")),
        ("One two. Three", False, 5, ("One two.", "sentence")),
        ("One two three", False, 5, ("One two three", "length")),
        ("One two. Three four five", True, 4, ("One two.", "sentence")),
        ("One two three four five", False, 4, ("One two three four", "length")),
    ],
)
def test_finish(text, ended, tokens, expected):
    assert finish(text, ended, tokens, Sampling(max_words=4, max_new_tokens=5)) == expected


def test_end_ids():
    class Tokenizer:
        eos_token_id: int | None = 1
        name_or_path = "some"

    tokenizer = Tokenizer()
    assert end_ids(tokenizer, None) == [1]
    assert end_ids(tokenizer, 1) == [1]
    assert end_ids(tokenizer, [7, 1]) == [1, 7]
    tokenizer.eos_token_id = None
    assert end_ids(tokenizer, 7) == [7]
    with pytest.raises(ValueError, match="tokenizer 'some' has no end-of-sequence token"):
        end_ids(tokenizer, None)
