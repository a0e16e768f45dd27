"""The tokenizer that baselines are trained with."""

import pytest

from xrec.baselines.tokenizer import SPECIAL_TOKENS, train_tokenizer
from xrec.config.baseline import SMALLEST_VOCABULARY


def test_it_encodes_anything_and_never_a_special_token():
    tokenizer = train_tokenizer(["the user likes jazz and pizza. warm bread"], 300, ["<|reserved_0|>"])
    assert tokenizer.convert_tokens_to_ids([*SPECIAL_TOKENS.values(), "<|reserved_0|>"]) == [0, 1, 2, 3]
    text = "ünïcödé \U0001f600 </s> <|reserved_0|>\n\t"
    ids = tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
    assert not set(ids) & set(tokenizer.all_special_ids)
    assert tokenizer.decode(ids) == text


def test_it_learns_frequent_pieces_within_the_vocabulary():
    tokenizer = train_tokenizer(["warm bread, warm bread"] * 9, 275)
    assert len(tokenizer) <= 275
    assert tokenizer.tokenize(" bread") == ["Ġbread"]


def test_bad_texts_and_vocabularies_are_refused():
    smallest = 256 + len(SPECIAL_TOKENS)
    assert smallest == SMALLEST_VOCABULARY
    assert len(train_tokenizer(["text"], smallest)) == smallest
    with pytest.raises(ValueError, match=f"vocabulary = 100 is below {smallest}"):
        train_tokenizer(["text"], 100)
    with pytest.raises(ValueError, match="no training texts"):
        train_tokenizer([" "], 300)
