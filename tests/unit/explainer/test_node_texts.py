"""The words that set a node's texts apart, and the texts that are a node's."""

import pytest

from tests.random_models import train_tokenizer
from xrec.explainer.node_texts import TYPICAL_WORDS, node_texts, typical_words
from xrec.explainer.pairs import PairTexts


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(["the user likes jazz and pizza. warm bread"], 300)


def test_typical_words_set_nodes_apart(tokenizer):
    texts = {
        3: ["the user likes jazz", "jazz again the user"],
        8: ["the user likes pizza"],
        9: ["the user likes bread"],
    }
    words = {n: [tokenizer.decode(w).strip() for w in ids] for n, ids in typical_words(texts, tokenizer).items()}
    assert words[3][0] == "jazz" and words[8][0] == "pizza" and words[9][0] == "bread"
    assert all(len(found) <= TYPICAL_WORDS for found in words.values())


def test_texts_without_a_shared_word_have_no_typical_words(tokenizer):
    letters = "bcdfghjklm"
    unshared = {n: ["xyz" + letters[n // 10] + letters[n % 10]] for n in range(100)}
    assert typical_words(unshared, tokenizer) == {n: [] for n in range(100)}
    assert typical_words({0: ["the and of"]}, tokenizer) == {0: []}


def test_a_node_has_the_explanations_of_its_pairs_and_its_own_description():
    texts = PairTexts(["A", "B", "C"], {0: "zero", 1: "one", 2: "two"}, {0: "aa", 1: "bb"})
    pairs = [(0, 1, "because"), (2, 1, "so"), (2, 2, "yes")]
    explained = {"user": {0: ["because"], 2: ["so", "yes"]}, "item": {1: ["because", "so"], 2: ["yes"]}}
    assert node_texts(pairs, texts, profiles=False) == explained
    described = {"user": {0: "zero", 2: "two"}, "item": {1: "B. bb", 2: "C."}}
    expected = {s: {n: [*found, described[s][n]] for n, found in nodes.items()} for s, nodes in explained.items()}
    assert node_texts(pairs, texts, profiles=True) == expected
