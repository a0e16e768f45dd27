"""Tables of users and items: lookups against a dictionary, searches against loops, over several record batches."""

import numpy as np
import pyarrow as pa
import pytest

from xrec.serving.node_table import NodeTable, sorted_rows, write_nodes
from xrec.workspace import WorkspaceError

COUNT = 70_001
WORDS = ["Éclair", "bread", "GARDEN", "straße", "寿司", "tea", "100%", "(a.b)"]


def make_ids() -> list[str]:
    """Distinct ids in random order: nested prefixes, characters beyond the first plane, and many alike ones."""
    generator = np.random.default_rng(0)
    special = [
        "a",
        "aa",
        "aaa",
        "aaaa",
        "Z",
        "z",
        " ",
        "é",
        "e\u0301",
        "\uffff",
        "\U0001f600",
        "\U0001f600x",
        "寿",
        "\x00",
        "a\x00",
    ]
    every = [*special, *(f"user-{k:032d}" for k in range(COUNT - len(special)))]
    return [every[k] for k in generator.permutation(COUNT)]


@pytest.fixture(scope="module")
def ids() -> list[str]:
    return make_ids()


@pytest.fixture(scope="module")
def titles() -> list[str]:
    generator = np.random.default_rng(1)
    return [" ".join(generator.choice(WORDS, 2)) if k % 100 == 0 else f"place {k}" for k in range(COUNT)]


@pytest.fixture(scope="module")
def profiles() -> dict[int, str]:
    chosen = np.flatnonzero(np.random.default_rng(2).random(COUNT) < 0.3)
    return {int(k): f"profile of {k}" for k in chosen} | {0: "first", COUNT - 1: "last"}


@pytest.fixture(scope="module")
def table(ids, titles, profiles, tmp_path_factory) -> NodeTable:
    path = tmp_path_factory.mktemp("nodes") / "items.arrow"
    columns = {"id": pa.chunked_array([ids[:10], ids[10:]]), "title": pa.chunked_array([titles])}
    nodes = sorted(profiles)
    texts = pa.chunked_array([[profiles[k] for k in nodes]], pa.large_string())
    write_nodes(path, columns, np.array(nodes), texts)
    return NodeTable(path, sorted_rows(columns["id"]))


def test_every_id_is_found_where_a_dictionary_has_it(table, ids):
    index = {node_id: row for row, node_id in enumerate(ids)}
    asked = [k for k in ids if not k.startswith("user-")] + ids[::501]
    assert {k: table.row(k) for k in asked} == {k: index[k] for k in asked}
    for unknown in ("", "user-", "user-1", ids[0] + "x", ids[0][:-1] + "~", "\U0010ffff", "aaaaa", "\ud800"):
        assert unknown not in index
        assert table.row(unknown) is None


def test_rows_keep_their_texts(table, ids, titles, profiles):
    assert len(table) == COUNT
    for row in [*range(0, COUNT, 997), 65_535, 65_536, COUNT - 1]:
        assert (table.id(row), table.title(row), table.profile(row)) == (ids[row], titles[row], profiles.get(row))
    assert table.table["profile"].null_count == COUNT - len(profiles)


def test_ids_are_searched_by_what_they_begin_with(table, ids):
    for prefix in ("", "a", "aa", "user-" + "0" * 29, "\U0001f600", "é", "e", "none", "user-" + "9" * 40, "\ud800"):
        expected = sorted(k for k in ids if k.startswith(prefix))
        for limit in (1, 3, 2000):
            assert [table.id(row) for row in table.beginning_with(prefix, limit)] == expected[:limit]


def test_titles_are_searched_in_whatever_case(table, titles):
    for text, folded in (
        ("BREAD", "bread"),
        ("garden", "garden"),
        ("éclair", "éclair"),
        ("寿司", "寿司"),
        ("100%", "100%"),
        ("(a.b)", "(a.b)"),
    ):
        expected = [k for k, title in enumerate(titles) if folded in title.lower()]
        assert len(expected) > 3
        assert table.titled(text, COUNT) == expected
        assert table.titled(text, 3) == expected[:3]
        assert table.titled(text, 2, leave_out=expected[:2]) == expected[2:4]
        assert table.titled(text, 0) == []
    assert table.titled(f"place {COUNT - 2}", 5) == [COUNT - 2]
    assert table.titled("nowhere", 5) == table.titled("\ud800", 5) == []


def test_an_id_that_occurs_twice_is_refused():
    with pytest.raises(WorkspaceError, match="the id 'b' occurs twice"):
        sorted_rows(pa.chunked_array([["b", "a"], ["c", "b"]]))
    assert sorted_rows(pa.chunked_array([[]], pa.string())).tolist() == []
    assert sorted_rows(pa.chunked_array([["x"]])).tolist() == [0]


def test_a_file_of_another_table_is_refused(table, tmp_path):
    write_nodes(
        tmp_path / "two",
        {"id": pa.chunked_array([["x", "y"]])},
        np.empty(0, int),
        pa.chunked_array([], pa.large_string()),
    )
    assert NodeTable(tmp_path / "two", np.array([0, 1])).profile(1) is None
    with pytest.raises(ValueError, match="2 rows of id, profile, expected 3"):
        NodeTable(tmp_path / "two", np.arange(3))
