"""What a study's `comparison.json` holds, from systems whose scores and texts are made up."""

import json

import pyarrow as pa
import pytest

from ray_jobs import preprocess, sample
from xrec import tables
from xrec.config import PreprocessConfig, SampleConfig, SparsityConfig, StudyConfig
from xrec.evaluation.comparison import System
from xrec.evaluation.comparison_content import build_comparison, flat_figures
from xrec.workspace import Workspace, WorkspaceError


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    workspace = Workspace(tmp_path_factory.mktemp("content") / "w")
    sample.run(workspace, SampleConfig(users=60, items=40, interactions_per_user=8, features=6))
    preprocess.run(workspace, PreprocessConfig(zero_shot_users=0.2))
    rows = workspace.read_text_table("explanations").to_pylist()
    test = sorted((r["user"], r["item"]) for r in rows if r["split"] == "test")
    systems = [
        finished(workspace, "xrec", "xrec", {p: 0.9 if n % 3 else 0.1 for n, p in enumerate(test)}),
        finished(workspace, "peter", "baseline", dict.fromkeys(test[1:], 0.5)),
    ]
    return workspace, systems, test


def finished(workspace, name, kind, score_of):
    variant = workspace.variant(name, 0, ("explain", "evaluate"))
    stage = variant.stage("explain", {"split": "test"})
    facts = {"signal": "true", "tokens": 1, "latency": 0.0, "adapter_hash": "", "status": "ok"}
    rows = [{"user": u, "item": i, "explanation": f"{name} on {u} and {i}", **facts} for u, i in score_of]
    stage.write_table("predictions", tables.from_rows("predictions", rows))
    stage.finish({})
    stage = variant.stage("evaluate", {}, ["explain"])
    keys = {"user": [u for u, _ in score_of], "item": [i for _, i in score_of], "signal": ["true"] * len(score_of)}
    scores = {**keys, "words": [4.0] * len(score_of), "rouge_l": list(score_of.values())}
    stage.write_table("scores", pa.table(scores))
    cost = {"judges": {"a": {"cost": 0.25}, "b": {"cost": None}}}
    stage.write_json("summary.json", {"metrics": {"usr": {"true": {"value": 0.5}}}, "scorers": {"gpt_score": cost}})
    stage.finish({})
    return System(name, kind, 0, variant)


def zero_shot_users(workspace):
    return {r["user"] for r in workspace.read_table("preprocess", "users").to_pylist() if r["zero_shot"]}


def test_zero_shot_pairs_are_left_out_unless_kept(world):
    workspace, systems, test = world
    cold = zero_shot_users(workspace)
    shared = test[1:]
    assert any(u in cold for u, _ in shared) and any(u not in cold for u, _ in shared)
    study = {"systems": {"xrec": {}, "peter": {}}, "bootstrap": 50, "metric": "rouge_l"}
    found = build_comparison(workspace, "compare", StudyConfig.model_validate(study), systems, "test")
    assert found["pairs"] == sum(u not in cold for u, _ in shared)
    kept = StudyConfig.model_validate(study | {"zero_shot": "keep"})
    assert build_comparison(workspace, "compare", kept, systems, "test")["pairs"] == len(shared)
    assert found["groups"] is None
    assert [s["cost"] for s in found["systems"]] == [0.25, 0.25]
    flat = flat_figures(json.loads(json.dumps(found)))
    assert flat["peter/rouge_l"] == 0.5
    assert flat["peter/rouge_l/difference"] == pytest.approx(flat["xrec/rouge_l"] - 0.5)


def test_examples_show_each_systems_text_beside_the_reference(world):
    workspace, systems, _ = world
    study = StudyConfig(systems={"xrec": {}, "peter": {}}, bootstrap=50, metric="rouge_l", examples=4)
    examples = build_comparison(workspace, "compare", study, systems, "test")["examples"]
    references = {
        (r["user"], r["item"]): r["explanation"] for r in workspace.read_text_table("explanations").to_pylist()
    }
    titles = {r["item"]: r["title"] for r in workspace.read_table("preprocess", "items_index").to_pylist()}
    assert sorted(e["scores"]["xrec"] for e in examples) == [0.1, 0.1, 0.9, 0.9]
    for example in examples:
        pair = example["user"], example["item"]
        assert example["texts"] == {name: f"{name} on {pair[0]} and {pair[1]}" for name in ("xrec", "peter")}
        assert (example["reference"], example["title"]) == (references[pair], titles[pair[1]])


def test_groups_follow_the_training_interactions(world):
    workspace, systems, test = world
    study = SparsityConfig(systems={"xrec": {}}, bootstrap=50, groups=2)
    found = build_comparison(workspace, "sparsity", study, systems[:1], "test")
    counts = {}
    for row in workspace.read_table("preprocess", "interactions").to_pylist():
        counts[row["user"]] = counts.get(row["user"], 0) + (row["split"] == "train")
    *known, cold = found["groups"]
    assert (cold["name"], cold["users"]) == ("zero-shot", len({u for u, _ in test} & zero_shot_users(workspace)))
    for group in known:
        low, high = (int(n) for n in group["label"].removesuffix(" interactions").split(" to "))
        assert group["pairs"] == sum(low <= counts[u] <= high and u not in zero_shot_users(workspace) for u, _ in test)
    assert sum(g["pairs"] for g in found["groups"]) == len(test)


def test_systems_without_a_common_pair_are_refused(world):
    workspace, systems, test = world
    other = finished(workspace, "lonely", "baseline", {(test[0][0], test[0][1]): 0.2})
    study = StudyConfig(systems={"peter": {}, "lonely": {}}, reference="peter")
    with pytest.raises(WorkspaceError, match="peter, lonely have no pair in common"):
        build_comparison(workspace, "compare", study, [systems[1], other], "test")
