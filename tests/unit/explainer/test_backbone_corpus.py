"""What the embedded backbone reads and must not read."""

import pytest

from xrec.explainer.backbone_corpus import train_tokenizer, training_documents, typical_words
from xrec.explainer.pairs import PairTexts
from xrec.explainer.prompt import PromptBuilder


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(["the user likes jazz and pizza. warm bread"], 300)


def test_tokenizer_encodes_anything_and_never_a_special_token(tokenizer):
    text = "ünïcödé \U0001f600 </s> <|reserved_0|>\n\t"
    ids = tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
    assert not set(ids) & set(tokenizer.all_special_ids)
    assert tokenizer.decode(ids) == text


def test_bad_texts_and_vocabularies_are_refused():
    with pytest.raises(ValueError, match="vocabulary = 100"):
        train_tokenizer(["text"], 100)
    with pytest.raises(ValueError, match="no training texts"):
        train_tokenizer([" "], 300)


def test_documents_hold_training_nodes_texts_only(tokenizer):
    texts = PairTexts(["A", "B", "C"], {0: "zero", 1: "one", 2: "two"}, {0: "aa", 1: "bb", 2: "cc"})
    builder = PromptBuilder(tokenizer)
    documents = training_documents([(0, 1, "because")], texts, builder, 512)
    targets = sorted(tokenizer.decode(d.target[:-1]) for d in documents)
    assert targets == ["B. bb", "because", "zero"]
    assert len(training_documents([(0, 1, "because")], texts, builder, 512, descriptions=False)) == 1
    assert training_documents([(0, 1, "because")], texts, builder, 5) == []


def test_typical_words_set_nodes_apart(tokenizer):
    texts = {
        3: ["the user likes jazz", "jazz again the user"],
        8: ["the user likes pizza"],
        9: ["the user likes bread"],
    }
    words = {n: [tokenizer.decode(w).strip() for w in ids] for n, ids in typical_words(texts, tokenizer).items()}
    assert words[3][0] == "jazz" and words[8][0] == "pizza" and words[9][0] == "bread"


def test_texts_without_a_shared_word_have_no_typical_words(tokenizer):
    letters = "bcdfghjklm"
    unshared = {n: ["xyz" + letters[n // 10] + letters[n % 10]] for n in range(100)}
    assert typical_words(unshared, tokenizer) == {n: [] for n in range(100)}
    assert typical_words({0: ["the and of"]}, tokenizer) == {0: []}
