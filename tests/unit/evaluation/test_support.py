"""The lexical checker: its formula on cases worked out by hand, and what does not change it."""

import pickle

import numpy as np
import pytest

from xrec.evaluation.support import AFFIRMED, DENIED, LexicalChecker, claim_of

SOURCE = "Guests come to this place for its live jazz and its wood-fired pizza."


def support(statement: str, *sources: str) -> float:
    return float(LexicalChecker().support([statement], [sources])[0])


@pytest.mark.parametrize(
    ("statement", "sources", "expected"),
    [
        ("The user would enjoy this place for its live jazz.", [SOURCE], 1),
        # Inflections are the same word.
        ("They love pizzas.", [SOURCE], 1),
        # Two of three content words; none of two.
        ("The user would enjoy the live jazz bands.", [SOURCE], 2 / 3),
        ("The user would enjoy the rooftop views.", [SOURCE], 0),
        # Words of different sentences support no statement together.
        ("The spicy noodles would please them.", ["The sauce is spicy. They sell noodles."], 1 / 2),
        # Both words denied: none agrees.
        ("There is no live jazz.", [SOURCE], 0),
        # Of two words one agrees and one is opposed, by a word of opposite meaning and by a denial.
        ("The staff is rude.", ["The staff is friendly."], 1 / 2 * 1 / 2),
        ("The service isn't friendly.", ["The service is friendly."], 1 / 2 * 1 / 2),
        # An opposite that is denied is the thing itself; words of one meaning are one word.
        ("The service is not slow.", ["They praise the quick service."], 1),
        ("The employees are welcoming.", ["The staff is friendly."], 1),
        # The reason behind a denial is meant.
        ("The user may not enjoy it due to bland soups.", ["The soups were bland."], 1),
        # Not only.
        ("They praise not only the bread but the soups.", ["The bread and the soups are good."], 1),
        # A verdict against the source's is a contradiction.
        ("The user would dislike the soups.", ["Guests love the soups."], 1 / 2),
        # One of two words, and one of three, and a contradiction for each name or number that is nowhere.
        ("Their pizza is $12.", ["They sell pizza."], 1 / 2 * 1 / 2),
        ("Their pizza is by Luigi since 1990.", ["They sell pizza."], 1 / 3 * 1 / 4),
        ("Their pizza is $1,200.", ["They sell pizza. Everything is 1200 dollars."], 1),
        ("They play two board games.", ["They play 2 board games."], 1),
        # Names that are there count only where there is nothing else.
        ("The user would enjoy Ella's for its soups.", ["Ella's", "They sell bread."], 0),
        ("The user would enjoy Ella's.", ["Ella's", "They sell bread."], 1),
        ("The user would enjoy Luigi's.", ["Ella's", "They sell bread."], 0),
        # Mere praise is not looked for; blame is.
        ("The bread is great.", ["They sell bread."], 1),
        ("The bread is terrible.", ["They sell bread."], 1 / 2),
        ("The bread is terrible.", ["They sell great bread."], 1 / 2 * 1 / 2),
        # Of two sentences with the same words the one without a contradiction counts.
        ("The bread is fresh.", ["The bread is stale. The bread is fresh."], 1),
        ("The bread is fresh.", ["The bread is fresh.", "The bread is stale."], 1),
        # A verdict alone.
        ("The user would not enjoy this place.", ["Guests love the bread."], 0),
        ("The user would not enjoy this place.", ["A guest complained."], 1),
        ("They sell soups.", [], 0),
        ("They sell soups.", [""], 0),
    ],
)
def test_formula(statement, sources, expected):
    assert support(statement, *sources) == pytest.approx(expected)


@pytest.mark.parametrize("text", ["The user would enjoy this place.", "They would gladly return.", "Great!", "…"])
def test_mere_framing_has_no_support(text):
    assert np.isnan(support(text, SOURCE))


def test_a_claim_is_words_names_and_a_verdict():
    claim = claim_of("The user would not enjoy Ella's loud music, but its 12 fresh teas.")
    assert claim.words == {"quiet": AFFIRMED, "music": DENIED, "fresh": AFFIRMED, "tea": AFFIRMED}
    assert claim.names == {"ella", "12"}
    assert claim.verdict == -1


def test_a_shouted_sentence_has_no_names():
    assert claim_of("THE BREAD HERE WAS WARM").names == frozenset()


def test_rows_do_not_influence_each_other_and_order_of_sources_does_not_matter():
    statements = ["They sell warm bread.", "The bread is stale.", "There is no jazz.", "They sell bread for $3."]
    sources = [[SOURCE, "Warm bread, fresh tea."], ["The bread is fresh."], [SOURCE], ["Bread and tea."]]
    checker = LexicalChecker(cached_sources=1)
    together = checker.support(statements, sources)
    alone = [support(statement, *texts) for statement, texts in zip(statements, sources, strict=True)]
    backwards = checker.support(statements[::-1], [texts[::-1] for texts in sources[::-1]])
    np.testing.assert_array_equal(together, alone)
    np.testing.assert_array_equal(together, backwards[::-1])


def test_more_sources_never_support_less_by_absence():
    assert support("They sell bread at Ella's.", "They sell bread.", "Ella's") > support(
        "They sell bread at Ella's.", "They sell bread."
    )


def test_it_is_pickled_without_its_cache():
    checker = LexicalChecker(cached_sources=7)
    checker.support(["They sell bread."], [["They sell bread."]])
    copy = pickle.loads(pickle.dumps(checker))
    assert copy.cached_sources == 7
    assert copy.support(["They sell bread."], [["They sell bread."]]).tolist() == [1.0]


def test_rows_that_do_not_match_are_refused():
    with pytest.raises(ValueError):
        LexicalChecker().support(["a", "b"], [["a"]])
