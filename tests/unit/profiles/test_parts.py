"""Blocks of requests and the files of their results: nothing lost, nothing doubled, whatever is done twice."""

import pyarrow as pa
import pytest

from xrec.config import Price
from xrec.profiles import parts
from xrec.profiles.answers import Answer
from xrec.workspace import Workspace, WorkspaceError


def blocks(rows, size):
    table = pa.table(
        {
            "item": pa.array(range(rows), pa.int32()),
            "record": [f'{{"title":"place {i}"}}' for i in range(rows)],
        }
    )
    return [table.slice(start, size) for start in range(0, rows, size)]


def answer(text, status="ok", tokens=7):
    return Answer(text, "m-1", tokens, 2, 1, 0.5, status, None if status == "ok" else "deadline: 3 s")


@pytest.fixture(params=["folder", "memory"])
def workspace(request, tmp_path):
    return Workspace(tmp_path / "w" if request.param == "folder" else f"memory://{tmp_path.name}-parts")


def test_requests_come_back_block_by_block(workspace):
    made = blocks(1003, 5)
    index = parts.write_requests(workspace, "item_profile", made)
    assert (index.rows, index.blocks) == (1003, 201)
    assert index.characters == sum(len(r) for b in made for r in b["record"].to_pylist())
    for block in (0, 63, 64, 127, 128, 200):
        assert parts.read_block(workspace, "item_profile", block).equals(made[block].combine_chunks())


def test_requests_are_not_made_twice(workspace):
    first = parts.write_requests(workspace, "item_profile", blocks(10, 4))

    def never():
        raise AssertionError("the records were made again")
        yield

    assert parts.write_requests(workspace, "item_profile", never()) == first


def test_half_written_requests_are_made_anew(workspace):
    parts.write_requests(workspace, "item_profile", blocks(200, 2))
    workspace.remove("profile", "work", "item_profile_requests", "index.json")
    index = parts.write_requests(workspace, "item_profile", blocks(6, 4))
    assert (index.rows, index.blocks) == (6, 2)
    assert workspace.files("profile", "work", "item_profile_requests") == ["index.json", "part-00000.parquet"]


def test_a_block_written_twice_is_there_once(workspace):
    index = parts.write_requests(workspace, "item_profile", blocks(7, 4))
    for block in (1, 0, 1):
        requests = parts.read_block(workspace, "item_profile", block)
        answers = [answer(f"text {i}") for i in requests["item"].to_pylist()]
        parts.write_part(workspace, "item_profile", block, requests, answers, "h", Price(input=1, output=2))
    assert parts.done_blocks(workspace, "item_profile") == {0, 1}
    table = workspace.read_table("profile", "item_profiles")
    parts.check_complete(workspace, "item_profile", index, table)
    assert table["item"].to_pylist() == list(range(7))
    assert table["profile"].to_pylist() == [f"text {i}" for i in range(7)]
    assert table["cost"].to_pylist() == pytest.approx([(7 * 1 + 2 * 2) / 1e6] * 7)


def test_repairing_rows_leaves_the_others_alone(workspace):
    parts.write_requests(workspace, "item_profile", blocks(6, 6))
    requests = parts.read_block(workspace, "item_profile", 0)
    before = [answer("", "failed") if i in (1, 4) else answer(f"old {i}") for i in range(6)]
    parts.write_part(workspace, "item_profile", 0, requests, before, "h", None)
    assert parts.failed_rows(workspace, "item_profile") == {0: [1, 4]}
    parts.write_part(
        workspace, "item_profile", 0, requests, [answer("new 4"), answer("new 1", tokens=9)], "h", None, rows=[4, 1]
    )
    table = workspace.read_table("profile", "item_profiles")
    assert table["item"].to_pylist() == list(range(6))
    assert table["profile"].to_pylist() == ["old 0", "new 1", "old 2", "old 3", "new 4", "old 5"]
    assert table["tokens_in"].to_pylist() == [7, 7 + 9, 7, 7, 7 + 7, 7]  # what the failure had cost was spent, too
    assert table["attempts"].to_pylist() == [1, 2, 1, 1, 2, 1]
    assert parts.failed_rows(workspace, "item_profile") == {}


def test_an_answer_too_few_and_a_file_too_few_are_refused(workspace):
    index = parts.write_requests(workspace, "item_profile", blocks(6, 3))
    requests = parts.read_block(workspace, "item_profile", 0)
    with pytest.raises(ValueError, match=r"item_profile block 0: 2 answers for 3 rows"):
        parts.write_part(workspace, "item_profile", 0, requests, [answer("a"), answer("b")], "h", None)
    parts.write_part(workspace, "item_profile", 0, requests, [answer("a")] * 3, "h", None)
    with pytest.raises(WorkspaceError, match=r"item_profiles holds 3 rows of 6"):
        parts.check_complete(workspace, "item_profile", index, workspace.read_table("profile", "item_profiles"))


def test_an_explanation_keeps_its_pair_split_and_feature(workspace):
    requests = pa.table(
        {
            "user": pa.array([3, 4], pa.int32()),
            "item": pa.array([8, 1], pa.int32()),
            "split": ["train", "test"],
            "feature": ["live jazz", None],
            "record": ['{"review":"a"}', '{"review":"b"}'],
        }
    )
    parts.write_requests(workspace, "explanation", [requests])
    parts.write_part(workspace, "explanation", 0, requests, [answer("x"), answer("y")], "h", None)
    rows = workspace.read_table("profile", "explanations").to_pylist()
    assert [(r["user"], r["item"], r["split"], r["feature"], r["explanation"]) for r in rows] == [
        (3, 8, "train", "live jazz", "x"),
        (4, 1, "test", None, "y"),
    ]
