"""The import of a published folder: every form of it, its oddities, and errors that name file and column."""

import csv
import pickle

import pandas
import pytest

from xrec.data.release import ReleaseError, clean_text, read_release, release_files
from xrec.tables import validate

EDGES = {"trn": [(0, 10), (1, 11), (1, 10)], "val": [(0, 11)], "tst": [(1, 12)]}
TEXTS = [
    (1, 12, "Café", "likes tea", "a quiet place", "The user would enjoy it."),
    (0, 10, "Bistro  One ", "likes soup", "known for &amp; by its soup", " The soup.\n"),
]


def write_edges(path, edges):
    path.write_text("user,item\n" + "".join(f"{u},{i}\n" for u, i in edges))


def write_texts(path, rows, columns=("uid", "iid", "title", "user_summary", "item_summary", "explanation")):
    frame = pandas.DataFrame([row[: len(columns)] for row in rows], columns=pandas.Index(columns, dtype=object))
    texts = [c for c in columns if c not in ("uid", "iid")]
    path.write_bytes(pickle.dumps(frame.astype(dict.fromkeys(texts, object)), 4))


def write_neighbours(path, edges=None, users=2):
    edges = EDGES if edges is None else edges
    lists = {
        f"{part}_user_nb": [[i for u, i in pairs if u == n] for n in range(users)] for part, pairs in edges.items()
    }
    path.write_bytes(pickle.dumps({**lists, "user_num": users, "item_num": 13}))


@pytest.fixture
def folder(tmp_path):
    for part, edges in EDGES.items():
        write_edges(tmp_path / f"total_{part}.csv", edges)
    write_texts(tmp_path / "tst.pkl", TEXTS)
    return tmp_path


def read(folder):
    tables, counts = read_release(folder)
    return {name: validate(name, table) for name, table in tables.items()}, counts


def splits(tables):
    return {(r["user_id"], r["item_id"]): r["split"] for r in tables["source_split"].to_pylist()}


EXPECTED = {
    (str(user), str(item)): split
    for split, part in (("train", "trn"), ("val", "val"), ("test", "tst"))
    for user, item in EDGES[part]
}


def test_graph_files_and_texts_become_tables(folder):
    tables, counts = read(folder)
    assert splits(tables) == EXPECTED
    reviews = tables["reviews"]
    assert set(zip(reviews["user_id"].to_pylist(), reviews["item_id"].to_pylist(), strict=True)) == set(EXPECTED)
    assert all(reviews[column].null_count == 5 for column in ("rating", "timestamp", "text"))
    titles = {r["item_id"]: r["title"] for r in tables["items"].to_pylist()}
    assert titles == {"10": "Bistro One", "11": "item 11", "12": "Café"}
    told = {(r["user_id"], r["item_id"]): r for r in tables["source_explanations"].to_pylist()}
    assert set(told) == {("1", "12"), ("0", "10")}
    assert told["0", "10"]["explanation"] == "The soup."
    assert {r["split"] for r in told.values()} == {"test"}
    profiles = {r["item_id"]: r["profile"] for r in tables["source_item_profiles"].to_pylist()}
    assert profiles == {"12": "a quiet place", "10": "known for & by its soup"}
    assert {r["user_id"]: r["profile"] for r in tables["source_user_profiles"].to_pylist()} == {
        "1": "likes tea",
        "0": "likes soup",
    }
    assert (counts["users"], counts["items"], counts["interactions"], counts["interactions/train"]) == (2, 3, 5, 3)


def test_neighbour_lists_stand_in_for_files_that_are_absent(folder):
    expected, _ = read(folder)
    write_neighbours(folder / "para_dict.pickle")
    for absent in (["total_trn.csv"], ["total_val.csv", "total_tst.csv"]):
        for name in absent:
            (folder / name).unlink()
        tables, _ = read(folder)
        assert splits(tables) == EXPECTED
        assert tables["items"].sort_by("item_id").equals(expected["items"].sort_by("item_id"))


def test_a_graph_without_a_split_or_texts(tmp_path):
    write_edges(tmp_path / "total.csv", [(0, 1), (1, 1)])
    tables, counts = read(tmp_path)
    assert set(tables) == {"reviews", "items"}
    assert (counts["interactions"], counts["users"], counts["items"]) == (2, 2, 1)


def test_edges_of_the_whole_graph_that_no_part_has_come_without_a_split(folder):
    write_edges(folder / "total.csv", [*EDGES["trn"], (5, 10)])
    tables, _ = read(folder)
    assert splits(tables) == EXPECTED
    assert tables["reviews"].num_rows == 6


def test_of_repeated_pairs_the_first_stays_and_the_rest_are_counted(folder):
    write_edges(folder / "total_val.csv", [(0, 11), (0, 10), (0, 11)])
    tables, counts = read(folder)
    assert splits(tables) == EXPECTED
    assert counts["dropped/interactions/duplicate"] == 2


def test_of_conflicting_texts_the_first_file_s_stay(folder):
    other = (1, 12, "Teahouse", "likes all", "a loud place", "Another.")
    write_texts(folder / "trn.pkl", [other, (0, 11, "Eleven", "likes soup", "eleven", "Eleven it is.")])
    tables, counts = read(folder)
    told = {
        (r["user_id"], r["item_id"]): (r["split"], r["explanation"]) for r in tables["source_explanations"].to_pylist()
    }
    assert told == {
        ("1", "12"): ("train", "Another."),
        ("0", "11"): ("train", "Eleven it is."),
        ("0", "10"): ("test", "The soup."),
    }
    assert {r["item_id"]: r["title"] for r in tables["items"].to_pylist()}["12"] == "Teahouse"
    assert counts["dropped/explanations/duplicate"] == 1
    assert (counts["dropped/item_profiles/conflict"], counts["dropped/user_profiles/conflict"]) == (1, 1)


@pytest.mark.parametrize(
    ("text", "plain"),
    [
        ("  two\n words\t ", "two words"),
        ("Love &amp; Lies", "Love & Lies"),
        ("The &AElig;re Saga", "The Ære Saga"),
        ('"All of it is quoted."', "All of it is quoted."),
        ('"The Reader" is a novel', '"The Reader" is a novel'),
        ('"One" or "Two"', '"One" or "Two"'),
        ("{ Paperback }", "{ Paperback }"),
    ],
)
def test_texts_are_cleaned(text, plain):
    assert clean_text(text) == plain


# Errors --------------------------------------------------------------------------------------------------------------


def test_a_folder_without_a_graph_is_told_what_was_looked_for(tmp_path):
    write_texts(tmp_path / "tst.pkl", TEXTS)
    with pytest.raises(
        ReleaseError,
        match=r"import.path = '.*' has no interaction graph; looked for total_trn.csv, total_val.csv, total_tst.csv, "
        r"total.csv, para_dict.pickle \(and for texts: trn.pkl, val.pkl, tst.pkl\)",
    ):
        release_files(tmp_path)
    with pytest.raises(ReleaseError, match=r"import.path = '.*nowhere' is not a folder"):
        read_release(tmp_path / "nowhere")


def test_a_part_of_the_graph_that_is_missing_is_named(folder):
    (folder / "total_trn.csv").unlink()
    with pytest.raises(
        ReleaseError, match=r"a part of the graph is missing; looked for total_trn.csv, and for para_dict"
    ):
        read_release(folder)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("user,thing\n1,2\n", r"total_val.csv: the column 'item' is missing \(found: user, thing\)"),
        ("user,item\n1,2\n1,soup\n", r"total_val.csv: not a table of integer user and item ids .*'soup'"),
        ("user,item\n1,2\n1,\n", r"total_val.csv: column 'item' is empty in data row 1"),
        ("user,item\n1,2\n1\n", r"total_val.csv: not a table of integer user and item ids"),
        ("", r"total_val.csv: not a table of integer user and item ids"),
    ],
)
def test_a_bad_graph_file_is_named(folder, content, message):
    (folder / "total_val.csv").write_text(content)
    with pytest.raises(ReleaseError, match=message):
        read_release(folder)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"val_user_nb": [[1]]}, r"para_dict.pickle: the entry 'trn_user_nb' is missing \(found: 'val_user_nb'\)"),
        ([[1], [2]], r"para_dict.pickle: the entry 'trn_user_nb' is missing \(found: list\)"),
        ({"trn_user_nb": [1, 2]}, r"para_dict.pickle: entry 'trn_user_nb' is not a list of lists"),
        ({"trn_user_nb": [["x"]]}, r"para_dict.pickle: entry 'trn_user_nb' is not a list of lists"),
    ],
)
def test_bad_neighbour_lists_are_named(folder, value, message):
    (folder / "total_trn.csv").unlink()
    (folder / "para_dict.pickle").write_bytes(pickle.dumps(value))
    with pytest.raises(ReleaseError, match=message):
        read_release(folder)


def test_bad_texts_are_named_by_file_column_and_row(folder):
    write_texts(folder / "tst.pkl", TEXTS, columns=("uid", "iid", "title", "user_summary", "item_summary"))
    with pytest.raises(ReleaseError, match=r"tst.pkl: the column 'explanation' is missing \(found: uid, iid, title"):
        read_release(folder)
    for value in (None, float("nan"), "  ", 7):
        write_texts(folder / "tst.pkl", [TEXTS[0], (*TEXTS[1][:4], value, "x")])
        with pytest.raises(ReleaseError, match=r"tst.pkl: column 'item_summary', row 1: .* is not a text"):
            read_release(folder)
    write_texts(folder / "tst.pkl", [TEXTS[0], ("first", *TEXTS[1][1:])])
    with pytest.raises(ReleaseError, match=r"tst.pkl: column 'uid' does not hold integer ids"):
        read_release(folder)


def test_a_malicious_text_file_is_refused_by_name(folder):
    class Payload:
        def __reduce__(self):
            import os

            return os.system, (f"touch {folder / 'it-ran'}",)

    (folder / "tst.pkl").write_bytes(pickle.dumps(Payload()))
    with pytest.raises(ReleaseError, match=r"tst.pkl: it refers to posix.system"):
        read_release(folder)
    assert not (folder / "it-ran").exists()


# The published data --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("dataset", "sizes"), [("yelp", (15_962, 14_085, 393_680)), ("amazon", (15_349, 15_247, 360_839))]
)
def test_the_published_folders_are_imported_whole(release_data, dataset, sizes):
    folder = release_data / "xrec-release" / dataset
    tables, counts = read(folder)
    assert (counts["users"], counts["items"], counts["interactions"]) == sizes
    assert tables["source_explanations"].num_rows == 3000
    found = splits(tables)
    for part, split in (("val", "val"), ("tst", "test")):
        with (folder / f"total_{part}.csv").open() as file:
            pairs = {(row["user"], row["item"]) for row in csv.DictReader(file)}
        assert pairs == {pair for pair, value in found.items() if value == split}
    if dataset == "amazon":
        neighbours = pickle.loads((folder / "para_dict.pickle").read_bytes())["trn_user_nb"]
        train = {(str(user), str(item)) for user, items in enumerate(neighbours) for item in items}
    else:
        with (folder / "total_trn.csv").open() as file:
            train = {(row["user"], row["item"]) for row in csv.DictReader(file)}
    assert train == {pair for pair, value in found.items() if value == "train"}
