"""Scores by blocks: resumption, counts and times added up over them."""

import shutil

import pytest

from ray_jobs import evaluate_actors
from ray_jobs.evaluate_actors import ScoreActor, remove_work, score_predictions
from tests.unit.evaluation.conftest import explained_workspace
from xrec.config import ConfigError, EvaluateConfig
from xrec.evaluation.scoring import join_references, score_rows
from xrec.workspace import Workspace

CONFIG = EvaluateConfig(metrics=("length", "rouge", "feature"), compute={"rows_per_block": 10_000})


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    workspace = explained_workspace(tmp_path_factory.mktemp("score") / "w")
    joined = join_references(workspace.read_table("explain", "predictions"), workspace.read_text_table("explanations"))
    return workspace, joined


def begun(world, tmp_path):
    workspace = Workspace(shutil.copytree(world[0].path(), tmp_path / "w"))
    workspace.stage("evaluate", {})
    return workspace, world[1]


def test_one_block_needs_no_cluster_and_gives_the_scores_of_one_pass(world, tmp_path, monkeypatch):
    monkeypatch.setattr(evaluate_actors, "require", None)
    workspace, joined = begun(world, tmp_path)
    scores, facts = score_predictions(workspace, CONFIG, joined, "cpu")
    scorers = evaluate_actors.open_scorers(workspace, CONFIG, "cpu", True)
    expected, _ = score_rows(joined, scorers)
    assert sorted(map(str, scores.to_pylist())) == sorted(map(str, expected.to_pylist()))
    assert set(facts) == {"length", "rouge", "feature"}
    assert all(f["rows"] == len(joined) and f["seconds"] > 0 for f in facts.values())
    remove_work(workspace)
    assert workspace.files("evaluate") == ["metrics.jsonl", "started.json"]


def test_counts_add_up_over_blocks_and_constants_do_not(world, tmp_path):
    workspace, joined = begun(world, tmp_path)
    config = CONFIG.model_copy(update={"compute": CONFIG.compute.model_copy(update={"rows_per_block": 9})})
    evaluate_actors.blocks.write_requests(workspace, evaluate_actors._ROWS, evaluate_actors._cut(joined, 9))
    blocks = -(-len(joined) // 9)
    # Two actors share the work, as on a cluster: neither has seen all rows.
    actors = [ScoreActor(workspace, config, "cpu", True) for _ in range(2)]
    for block in range(blocks):
        actors[block % 2]({"block": [block]})
    scores, facts = score_predictions(workspace, config, joined, "cpu")
    assert len(scores) == len(joined)
    assert facts["feature"]["features"] == len({f for f in joined["feature"].to_pylist() if f})
    empty = sum(not text.strip() for text in joined["explanation"].to_pylist())
    assert empty == 1 and facts["rouge"]["empty"] == empty


def test_scored_blocks_are_not_scored_again(world, tmp_path, monkeypatch):
    workspace, joined = begun(world, tmp_path)
    score_predictions(workspace, CONFIG, joined, "cpu")
    monkeypatch.setattr(evaluate_actors, "ScoreActor", None)
    scores, _ = score_predictions(workspace, CONFIG, joined, "cpu")
    assert len(scores) == len(joined)


def test_a_cluster_that_is_too_small_is_refused(world, tmp_path, ray_session):
    workspace, joined = begun(world, tmp_path)
    compute = CONFIG.compute.model_copy(update={"rows_per_block": 9, "actors": (3, 3), "cpus_per_actor": 1000.0})
    with pytest.raises(ConfigError, match=r"needs \{CPU: 1000\}, 3 times.* lower evaluate\.compute\.actors"):
        score_predictions(workspace, CONFIG.model_copy(update={"compute": compute}), joined, "cpu")
