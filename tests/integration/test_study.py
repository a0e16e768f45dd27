"""`xrec compare`, `ablate` and `sparsity` on a tiny world: XRec tuned for a few steps beside baselines and floors."""

import json

import pytest

from ray_jobs import compare, sparsity
from ray_jobs.import_predictions import run as import_predictions
from ray_jobs.study_systems import plan
from tests.tiny_world import make_workspace
from xrec.config import CompareConfig, ConfigError, SparsityConfig
from xrec.config_files import load_config
from xrec.workspace import Workspace, WorkspaceError

SETTINGS = [
    "tune.epochs=1",
    "tune.batch_size=8",
    "tune.max_length=192",
    "tune.align=none",
    "tune.prompt.max_profile_tokens=16",
    "tune.prompt.max_tokens=140",
    "tune.adapter.experts=2",
    "explain.max_new_tokens=12",
    "evaluate.metrics=[length, rouge, bleu]",
    "evaluate.likelihood=false",
    "evaluate.bootstrap=100",
    "baseline.epochs=1",
    "baseline.hidden=16",
    "baseline.layers=1",
    "baseline.heads=2",
    "baseline.vocabulary=300",
]
SYSTEMS = {
    "xrec": {},
    "att2seq": {"baseline.name": "att2seq"},
    "item_profile": {"baseline.name": "item_profile"},
}


@pytest.fixture(scope="module")
def settings():
    return load_config(None, SETTINGS)


def study(**changes) -> CompareConfig:
    values = {"systems": SYSTEMS, "seeds": (0, 1), "bootstrap": 100, "metric": "rouge_l", "examples": 2}
    return CompareConfig.model_validate(values | {"compute": {"parallel": 2}} | changes)


@pytest.fixture(scope="module")
def compared(tmp_path_factory, ray_session, settings):
    workspace = make_workspace(tmp_path_factory.mktemp("study") / "w")
    test = [r for r in workspace.read_text_table("explanations").to_pylist() if r["split"] == "test"]
    file = tmp_path_factory.mktemp("file") / "answers.jsonl"
    rows = [{"user": r["user"], "item": r["item"], "explanation": r["explanation"]} for r in test[1:]]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    variant, _ = import_predictions(workspace, str(file), "oracle")
    from ray_jobs import evaluate

    evaluate.run(variant, settings.evaluate)
    line = compare.run(workspace, study(imported=["oracle"]), settings=settings)
    assert line.startswith("compare: 4 systems on 10 pairs; rouge_l: oracle 1.0000")
    return workspace


def test_every_system_is_there_at_every_seed_on_the_same_pairs(compared):
    found = compared.read_json("compare", "comparison.json")
    seeds = {s["name"]: s["seeds"] for s in found["systems"]}
    assert seeds == {key: [0, 1] for key in SYSTEMS} | {"oracle": [0]}
    test = [r for r in compared.read_text_table("explanations").to_pylist() if r["split"] == "test"]
    assert found["pairs"] == len(test) == 10
    for name, seed in compared.variants():
        predictions = Workspace(compared.path("variants", name, str(seed))).read_table("explain", "predictions")
        pairs = {(r["user"], r["item"]) for r in predictions.to_pylist()}
        assert pairs == {(r["user"], r["item"]) for r in (test if name != "oracle" else test[1:])}


def test_figures_are_means_of_the_systems_own_scores(compared):
    found = {s["name"]: s for s in compared.read_json("compare", "comparison.json")["systems"]}
    for name in SYSTEMS:
        means = []
        for seed in (0, 1):
            scores = Workspace(compared.path("variants", name, str(seed))).read_table("evaluate", "scores")
            values = scores["rouge_l"].to_pylist()
            means.append(sum(values) / len(values))
        assert found[name]["metrics"]["rouge_l"]["value"] == pytest.approx(sum(means) / 2)
    assert found["oracle"]["metrics"]["rouge_l"]["value"] == pytest.approx(1)
    assert found["oracle"]["difference"]["rouge_l"]["value"] < 0
    # A floor does not depend on the seed, and XRec does.
    assert found["item_profile"]["metrics"]["rouge_l"]["seed_std"] == 0
    assert {"table.md", "table.tex", "table.html", "report.html"} <= set(compared.files("compare"))


def test_a_finished_study_is_kept_and_another_one_refused(compared, settings):
    before = {f: compared.file_hash("compare", f) for f in compared.files("compare")}
    line = compare.run(compared, study(imported=["oracle"]), settings=settings)
    assert "already finished" in line
    assert before == {f: compared.file_hash("compare", f) for f in compared.files("compare")}
    with pytest.raises(WorkspaceError, match=r"config\.seeds"):
        compare.run(compared, study(imported=["oracle"], seeds=(0,)), settings=settings)


def test_studies_share_their_systems(compared, settings):
    """`sparsity` looks at what `compare` has tuned: no system runs again."""
    config = SparsityConfig(systems={"xrec": {}}, seeds=(0, 1), groups=2, bootstrap=100)
    places = [run.workspace(compared) for run in plan(settings, config)]
    before = [place.manifest("tune")["started"] for place in places]
    line = sparsity.run(compared, config, settings=settings)
    assert before == [place.manifest("tune")["started"] for place in places]
    assert line.startswith("sparsity: 1 systems on 10 pairs")
    groups = compared.read_json("sparsity", "comparison.json")["groups"]
    assert sum(g["pairs"] for g in groups) == 10
    assert all(g["systems"]["xrec"]["rouge_l"]["rows"] == g["pairs"] for g in groups)


def test_a_system_that_fails_is_named_and_the_others_finish(tmp_path, ray_session, settings):
    workspace = make_workspace(tmp_path / "w")
    systems = {"item_profile": {"baseline.name": "item_profile"}, "broken": {"tune.backbone": "/no/such/backbone"}}
    config = study(systems=systems, seeds=(0,), reference="item_profile")
    with pytest.raises(WorkspaceError, match=r"1 of 2 systems failed: broken/0: .*no/such/backbone"):
        compare.run(workspace, config, settings=settings)
    assert Workspace(workspace.path("variants", "item_profile", "0")).is_finished("evaluate")
    assert not workspace.is_finished("compare")


def test_predictions_that_were_never_scored_are_named(tmp_path, settings):
    workspace = make_workspace(tmp_path / "w")
    with pytest.raises(ConfigError, match=r"compare.imported names 'gpt4'.* --name gpt4"):
        compare.run(workspace, study(imported=["gpt4"]), settings=settings)


def test_an_unknown_metric_is_refused_before_anything_runs(tmp_path, settings):
    workspace = make_workspace(tmp_path / "w")
    with pytest.raises(ConfigError, match=r"compare.metric = 'bertscore' is no metric .* bert_score_f1"):
        compare.run(workspace, study(metric="bertscore"), settings=settings)
    assert workspace.variants() == []


def test_a_dry_run_writes_nothing(tmp_path, settings):
    workspace = make_workspace(tmp_path / "w")
    files = workspace.files()
    assert "item_profile at 2 seeds each" in compare.run(workspace, study(), settings=settings, dry_run=True)
    assert workspace.files() == files
