"""Requests of a batch: read, checked, numbered, and counted afterwards."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.tiny_world import ITEMS, USERS
from xrec import tables
from xrec.config import ExplainConfig
from xrec.explainer.requests import (
    RequestIndex,
    block_bounds,
    block_result,
    check_complete,
    collect_requests,
    done_blocks,
    hash_requests,
    prediction_metrics,
    read_block,
    write_requests,
)
from xrec.workspace import Workspace, WorkspaceError


@pytest.fixture(scope="module")
def workspace(tuned_workspace):
    return Workspace(tuned_workspace)


def write(folder, **columns):
    path = str(folder / "requests.parquet")
    pq.write_table(pa.table(columns), path)
    return path


def pairs_of(table):
    return list(zip(table["user"].to_pylist(), table["item"].to_pylist(), strict=True))


def test_the_default_is_the_explained_pairs_of_the_split(workspace):
    requests = collect_requests(workspace, ExplainConfig())
    rows = workspace.read_table("preprocess", "explanations").to_pylist()
    expected = sorted((r["user"], r["item"]) for r in rows if r["split"] == "test")
    assert sorted(pairs_of(requests.accepted)) == expected
    assert set(requests.accepted["signal"].to_pylist()) == {"true"}
    assert len(requests.rejected) == 0 and requests.repeated == 0


def test_without_explanations_the_default_is_the_interactions_of_the_split(tmp_path):
    workspace = Workspace(tmp_path / "w")
    rows = [{"user": 0, "item": 1, "split": "test"}, {"user": 2, "item": 0, "split": "train"}]
    workspace.write_table(tables.from_rows("interactions", rows), "preprocess", "interactions")
    assert pairs_of(collect_requests(workspace, ExplainConfig()).accepted) == [(0, 1)]
    with pytest.raises(WorkspaceError, match="'val' holds no interaction"):
        collect_requests(workspace, ExplainConfig(split="val"))


def test_each_control_adds_a_row_and_twice_the_same_one_adds_no_more(workspace):
    alone = collect_requests(workspace, ExplainConfig(limit=3)).accepted
    both = collect_requests(workspace, ExplainConfig(limit=3, controls=("shuffled", "off", "off"))).accepted
    assert both["signal"].to_pylist() == ["true"] * 3 + ["shuffled"] * 3 + ["off"] * 3
    assert pairs_of(both) == 3 * pairs_of(alone)


def test_source_ids_become_indices_and_unknown_ones_are_rejected(workspace, tmp_path):
    path = write(tmp_path, user_id=["u3", "nobody", "u3", "u1", None], item_id=["i2", "i2", "i2", "nothing", "i0"])
    requests = collect_requests(workspace, ExplainConfig(requests=path))
    assert pairs_of(requests.accepted) == [(3, 2)]
    assert requests.repeated == 1
    assert requests.rejected.to_pylist() == [
        {"row": 1, "user": "nobody", "item": "i2", "error": "user nobody is not in the workspace"},
        {"row": 3, "user": "u1", "item": "nothing", "error": "item nothing is not in the workspace"},
        {"row": 4, "user": None, "item": "i0", "error": "user (null) is not in the workspace"},
    ]


def test_indices_outside_are_rejected(workspace, tmp_path):
    path = write(tmp_path, user=[0, USERS, -1, 1], item=[0, 0, 0, ITEMS])
    requests = collect_requests(workspace, ExplainConfig(requests=path))
    assert pairs_of(requests.accepted) == [(0, 0)]
    assert requests.rejected["row"].to_pylist() == [1, 2, 3]


def test_unusable_requests_are_refused_by_name(workspace, tmp_path):
    config = ExplainConfig(requests=write(tmp_path, user=["0"], item=["1"]))
    with pytest.raises(ValueError, match=r"column 'user' is of type string.*name the column user_id"):
        collect_requests(workspace, config)
    config = ExplainConfig(requests=write(tmp_path, user=[0], product=[1]))
    with pytest.raises(ValueError, match="has the columns user, product; give it user_id and item_id"):
        collect_requests(workspace, config)
    config = ExplainConfig(requests=write(tmp_path, user_id=["nobody"], item_id=["i0"]))
    with pytest.raises(ValueError, match=r"no pair that .* knows; the first: user nobody is not"):
        collect_requests(workspace, config)
    with pytest.raises(FileNotFoundError, match=r"absent\.parquet"):
        collect_requests(workspace, ExplainConfig(requests=str(tmp_path / "absent.parquet")))
    (tmp_path / "text.parquet").write_text("not parquet")
    with pytest.raises(ValueError, match="is not parquet"):
        collect_requests(workspace, ExplainConfig(requests=str(tmp_path / "text.parquet")))


def test_the_hash_follows_the_contents_not_the_name(tmp_path):
    first = write(tmp_path, user=[0], item=[1])
    before = hash_requests(first)
    (tmp_path / "moved.parquet").write_bytes((tmp_path / "requests.parquet").read_bytes())
    assert hash_requests(str(tmp_path / "moved.parquet")) == before
    write(tmp_path, user=[0], item=[2])
    assert hash_requests(first) != before


def test_a_folder_of_parquet_files_is_read_whole(workspace, tmp_path):
    folder = tmp_path / "many"
    folder.mkdir()
    for i in range(3):
        pq.write_table(pa.table({"user": [i], "item": [i]}), str(folder / f"{i}.parquet"))
    requests = collect_requests(workspace, ExplainConfig(requests=str(folder)))
    assert sorted(pairs_of(requests.accepted)) == [(0, 0), (1, 1), (2, 2)]
    assert len(hash_requests(str(folder))) == 64


def test_requests_are_sorted_so_that_a_users_follow_each_other(workspace, tmp_path):
    path = write(tmp_path, user=[2, 0, 2, 1, 0], item=[5, 3, 1, 0, 2])
    requests = collect_requests(workspace, ExplainConfig(requests=path, controls=("off",)))
    assert pairs_of(requests.accepted) == 2 * [(0, 2), (0, 3), (1, 0), (2, 1), (2, 5)]
    # The limit takes the first of the file, in its order.
    assert pairs_of(collect_requests(workspace, ExplainConfig(requests=path, limit=2)).accepted) == [(0, 3), (2, 5)]


def asked(*counts, signals=("true",)):
    """Requests of users 0, 1, … with so many items each."""
    rows = [(u, i, s) for s in signals for u, count in enumerate(counts) for i in range(count)]
    return keys(*rows)


@pytest.mark.parametrize(
    ("counts", "size", "expected"),
    [
        ((3, 3, 2), 8, [0, 8]),
        ((3, 3, 3), 8, [0, 6, 9]),  # the third user's would not fit whole
        ((2, 20, 3), 8, [0, 2, 10, 18, 25]),  # too many for any block: blocks of its own, the last shared
        ((8, 8), 8, [0, 8, 16]),
        ((1,), 1, [0, 1]),
    ],
)
def test_blocks_keep_a_users_requests_together(counts, size, expected):
    assert block_bounds(asked(*counts), size) == expected


def test_blocks_of_many_users_are_full_and_lose_no_row():
    generator = np.random.default_rng(0)
    counts = generator.integers(1, 6, 500).tolist()
    bounds = block_bounds(asked(*counts, signals=("true", "off")), 32)
    sizes = np.diff(bounds)
    assert bounds[0] == 0 and bounds[-1] == 2 * sum(counts)
    assert sizes.max() <= 32 and sizes[:-1].min() > 32 - 6


def test_blocks_are_written_once_and_read_back(tmp_path):
    workspace = Workspace(tmp_path / "w")
    accepted = asked(*[2] * 70)
    index = write_requests(workspace, accepted, 2)
    assert index == RequestIndex(rows=140, blocks=70)
    assert len(workspace.files("explain", "work", "requests")) == 3  # 64 blocks, 6 blocks, the index
    assert read_block(workspace, 65).to_pylist() == accepted.slice(130, 2).to_pylist()
    # A run that goes on keeps the blocks, even where blocks would now be larger.
    assert write_requests(workspace, accepted, 100) == index
    assert done_blocks(workspace) == set()
    rows = read_block(workspace, 65).append_column("status", pa.array(["ok", "failed"]))
    assert block_result(65, rows) == {"block": 65, "rows": 2, "failed": 1}


def keys(*rows):
    schema = pa.schema([("user", pa.int32()), ("item", pa.int32()), ("signal", pa.string())])
    return pa.Table.from_pylist([dict(zip(schema.names, row, strict=True)) for row in rows], schema=schema)


def test_completeness_names_the_first_wrong_row():
    asked = keys((0, 1, "true"), (0, 2, "true"))
    check_complete(asked, keys((0, 2, "true"), (0, 1, "true")))
    with pytest.raises(WorkspaceError, match="user 0, item 2, signal 'true', is missing"):
        check_complete(asked, keys((0, 1, "true")))
    with pytest.raises(WorkspaceError, match="user 5, item 5, signal 'off', was not asked for"):
        check_complete(asked, keys((0, 1, "true"), (0, 2, "true"), (5, 5, "off")))
    with pytest.raises(WorkspaceError, match="user 0, item 1, signal 'true', was written more than once"):
        check_complete(asked, keys((0, 1, "true"), (0, 2, "true"), (0, 1, "true")))


def test_metrics_of_a_hand_made_batch():
    row = {"user": 0, "signal": "true", "adapter_hash": "x", "latency": 0.5, "tokens": 4, "status": "ok"}
    rows = [
        row | {"item": 0, "explanation": "one two three", "finish_reason": "stop"},
        row | {"item": 1, "explanation": " one  two three four ", "finish_reason": "length", "tokens": 8},
        row | {"item": 2, "explanation": "", "status": "failed", "error": "why", "tokens": 0},
    ]
    metrics = prediction_metrics(tables.from_rows("predictions", rows), max_words=3)
    assert metrics == {
        "rows": 3,
        "failed": 1,
        "failed_share": pytest.approx(1 / 3),
        "over_limit_share": 0.5,
        "cut_off_share": 0.5,
        "words_mean": 3.5,
        "tokens_mean": 6.0,
        "latency_mean_seconds": 0.5,
    }
