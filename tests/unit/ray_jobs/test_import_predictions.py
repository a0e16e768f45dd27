"""Predictions made elsewhere become a system of a workspace; the published ones of the paper among them."""

import itertools
import json
import shutil

import pytest

from ray_jobs import import_predictions, import_release, preprocess
from tests.tiny_world import make_workspace
from xrec.config import ImportConfig, PreprocessConfig
from xrec.data.predictions import PredictionsError
from xrec.data.unpickling import load_frame
from xrec.workspace import Workspace, WorkspaceError

# Published predictions that a workspace of the published data can place. Of Yelp's references 1,562 are texts that
# are in no published table of pairs: nothing says which pair they are about.
MATCHED = {"amazon": 3000, "yelp": 1438}


@pytest.fixture
def workspace(tmp_path):
    return make_workspace(tmp_path / "w")


def _file(path, workspace, text="x", count=None):
    rows = [r for r in workspace.read_text_table("explanations").to_pylist() if r["split"] == "test"][:count]
    lines = [
        {"user_id": f"u{r['user']}", "item_id": f"i{r['item']}", "text": f"{text} {n}"} for n, r in enumerate(rows)
    ]
    path.write_text("\n".join(map(json.dumps, lines)))
    return str(path), len(lines)


def test_a_variant_with_the_predictions(tmp_path, workspace):
    path, count = _file(tmp_path / "other.jsonl", workspace)
    variant, summary = import_predictions.run(workspace, path, "other")
    assert variant.uri == f"{workspace.uri}/variants/other/0"
    assert summary.startswith(f"predictions: {count} of {count} rows of other.jsonl -> ")
    assert len(variant.read_table("explain", "predictions")) == count
    assert len(variant.read_text_table("explanations")) == len(workspace.read_text_table("explanations"))
    fingerprint = variant.manifest("explain")["fingerprint"]
    assert fingerprint["config"] == {"system": "other", "split": "test", "seed": 0}
    assert {"preprocess", "predictions"} <= set(fingerprint["inputs"])
    assert not variant.exists("explain", import_predictions.REJECTED)


def test_once_more_does_nothing_and_other_content_is_refused(tmp_path, workspace):
    path, count = _file(tmp_path / "other.jsonl", workspace)
    variant, _ = import_predictions.run(workspace, path, "other")
    before = variant.read_bytes("explain", "manifest.json")
    copy = shutil.copy(path, tmp_path / "renamed.jsonl")
    assert import_predictions.run(workspace, str(copy), "other")[1].startswith("predictions: already there")
    assert variant.read_bytes("explain", "manifest.json") == before
    path, _ = _file(tmp_path / "new.jsonl", workspace, "y", count - 1)
    with pytest.raises(WorkspaceError, match="--force"):
        import_predictions.run(workspace, path, "other")
    assert variant.read_bytes("explain", "manifest.json") == before
    import_predictions.run(workspace, path, "other", force=True)
    assert variant.read_table("explain", "predictions")["explanation"].to_pylist()[0] == "y 0"


def test_what_finds_no_pair_is_listed_and_counted(tmp_path, workspace):
    path, count = _file(tmp_path / "other.jsonl", workspace)
    with open(path, "a") as file:
        file.write("\n" + json.dumps({"user_id": "nobody", "item_id": "i0", "text": "lost"}))
    variant, summary = import_predictions.run(workspace, path, "other")
    assert f"{count} of {count + 1} rows of other.jsonl, rejected: 1 unknown user_id" in summary
    assert variant.read_json("explain", "metrics.json") == {
        "predictions": count,
        "rejected": 1,
        "rejected/unknown user_id": 1,
    }
    assert variant.exists("explain", import_predictions.REJECTED)


def test_nothing_is_left_where_no_row_finds_a_pair(tmp_path, workspace):
    (tmp_path / "strange.csv").write_text("user_id,item_id,text\nnobody,i0,x\n")
    with pytest.raises(PredictionsError, match=r"none of its 1 rows .*1 unknown user_id.*same data"):
        import_predictions.run(workspace, str(tmp_path / "strange.csv"), "strange")
    assert workspace.variants() == []


def _explained_part(target, folder):
    """The published pairs with a text, without the other 300,000 edges of the graph, which take their time."""
    target.mkdir()
    shutil.copy(folder / "tst.pkl", target)
    frame = load_frame(folder / "tst.pkl")
    pairs = list(zip(frame["uid"].tolist(), frame["iid"].tolist(), strict=True))
    training = [(user, item) for (user, _), (_, item) in itertools.pairwise(pairs)]
    for part, edges in (("trn", set(training) - set(pairs)), ("val", []), ("tst", pairs)):
        (target / f"total_{part}.csv").write_text("user,item\n" + "".join(f"{u},{i}\n" for u, i in edges))
    return target


@pytest.mark.parametrize("name", sorted(MATCHED))
def test_the_published_predictions(tmp_path, release_data, name):
    folder = release_data / "xrec-release" / name
    workspace = Workspace(tmp_path / "w")
    import_release.run(workspace, ImportConfig(path=str(_explained_part(tmp_path / "part", folder))))
    preprocess.run(workspace, PreprocessConfig(split="published"))
    variant, summary = import_predictions.run(
        workspace, str(folder / "tst_pred.pkl"), "published", str(folder / "tst_ref.pkl")
    )
    predictions = variant.read_table("explain", "predictions")
    assert len(predictions) == MATCHED[name]
    lost = 3000 - MATCHED[name]
    assert (f"rejected: {lost:,} unknown reference" in summary) == (lost > 0)
    assert variant.manifest("explain")["fingerprint"]["config"]["split"] == "test"
    # The paper's Table 1: every published explanation is unique (USR 1.0000).
    assert len(set(predictions["explanation"].to_pylist())) == len(predictions)
