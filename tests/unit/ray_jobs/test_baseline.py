"""The stage `baseline`: what it writes, what it refuses, and that a killed run ends like an unkilled one."""

import json
import shutil

import pytest
from transformers import GPT2Config, GPT2LMHeadModel

from ray_jobs import baseline
from tests.random_models import train_tokenizer
from tests.unit.baselines.worlds import FEATURES, make_workspace
from xrec.baselines.corpus import Texts
from xrec.config import ExplainConfig
from xrec.config.baseline import BaselineConfig
from xrec.explainer.pairs import explained_pairs
from xrec.explainer.requests import collect_requests
from xrec.metric_logging import read_metrics
from xrec.workspace import Workspace, WorkspaceError

SMALL = {"hidden": 16, "heads": 2, "layers": 1, "vocabulary": 300, "batch_size": 16, "epochs": 2, "prompt_epochs": 1}
SMALL |= {"learning_rate": 1e-2, "max_words": 8}
SYSTEMS = ["att2seq", "nrt", "peter", "peter_plus", "pepler", "item_profile", "similar_user"]
FLOORS = SYSTEMS[5:]


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Workspace:
    return make_workspace(tmp_path_factory.mktemp("baseline") / "w")


@pytest.fixture
def workspace(base, tmp_path) -> Workspace:
    shutil.copytree(base.root, tmp_path / "w", ignore=shutil.ignore_patterns("variants"))
    return Workspace(tmp_path / "w")


def config_of(name: str, **changes) -> BaselineConfig:
    return BaselineConfig(name=name, **{**SMALL, **changes})


@pytest.mark.parametrize("name", SYSTEMS)
def test_a_system_explains_the_pairs_that_xrec_explains(base, name):
    workspace = base.variant(name, 0, ("baseline",))
    summary = baseline.run(workspace, config_of(name))
    predictions = workspace.read_table("explain", "predictions")
    asked = collect_requests(workspace, ExplainConfig(split="test")).accepted
    assert predictions.select(["user", "item", "signal"]).to_pydict() == asked.to_pydict()
    assert summary.startswith(f"baseline: {name}, {len(asked)} explanations")
    assert all(len(text.split()) <= 8 for text in predictions["explanation"].to_pylist())
    manifest = workspace.manifest("explain")["fingerprint"]
    told = {"feature": "item"} if name == "peter_plus" else {}
    expected = {"system": name, "split": "test", "limit": None, "max_words": 8, "seed": 0, **told}
    assert manifest["config"] == expected
    reads = {"preprocess", "baseline"} | ({"embed"} if name == "similar_user" else set())
    reads |= {"data"} if name in ("nrt", "peter", "peter_plus", "item_profile") else set()
    assert set(manifest["inputs"]) == reads
    assert base.files("baseline") == base.files("explain") == []
    weights = [] if name in FLOORS else ["model.safetensors", "tokenizer.json"]
    files = ["config.json", "manifest.json", "metrics.json", "metrics.jsonl", *weights]
    assert workspace.files("baseline") == sorted(files)
    assert baseline.run(workspace, config_of(name)) == (
        f"baseline: {name} is already finished ({workspace.path('explain', 'predictions')})"
    )


def test_the_floors_say_what_they_are_made_from(base):
    for name, sources in (("item_profile", {"profile"}), ("similar_user", {"item", "user", "neighbour"})):
        workspace = base.variant(f"{name}-sources", 0, ("baseline",))
        baseline.run(workspace, config_of(name, max_words=50))
        metrics = workspace.read_json("explain", "metrics.json")
        counts = {k.removeprefix("source/"): v for k, v in metrics.items() if k.startswith("source/")}
        assert set(counts) <= sources
        assert sum(counts.values()) == metrics["rows"]
    texts = workspace.read_table("explain", "predictions")["explanation"].to_pylist()
    assert set(texts) <= set(Texts.load(workspace).train["explanation"].to_pylist())


def test_a_killed_run_goes_on_to_the_same_system(workspace, monkeypatch):
    whole, killed = (workspace.variant("peter", seed, ("baseline",)) for seed in (0, 1))
    config = config_of("peter", epochs=3)
    baseline.run(whole, config)

    class Killed(BaseException):
        pass

    log = baseline.MetricLogger.log

    def log_until_killed(self, step, **figures):
        log(self, step, **figures)
        if step == 2:
            raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(baseline.MetricLogger, "log", log_until_killed)
        with pytest.raises(Killed):
            baseline.run(killed, config)
    assert killed.exists("baseline", "checkpoints", "state.safetensors")
    assert not killed.exists("baseline", "model.safetensors")
    with pytest.raises(WorkspaceError, match=r"begun with another config.epochs \(3, now 4\)"):
        baseline.run(killed, config_of("peter", epochs=4))
    baseline.run(killed, config)
    assert killed.manifest("baseline")["outputs"] == whole.manifest("baseline")["outputs"]
    explained = [w.read_table("explain", "predictions")["explanation"].to_pylist() for w in (whole, killed)]
    assert explained[0] == explained[1]
    assert [line["step"] for line in read_metrics(killed, "baseline")] == [1, 2, 3]
    assert killed.files("baseline", "checkpoints") == []


def test_a_change_is_refused_and_what_is_asked_does_not_train_anew(workspace):
    variant = workspace.variant("nrt", 0, ("baseline",))
    baseline.run(variant, config_of("nrt", limit=4))
    trained = variant.manifest("baseline")
    assert len(variant.read_table("explain", "predictions")) == 4
    with pytest.raises(WorkspaceError, match=r"'explain' was finished with another config.limit \(4, now None\)"):
        baseline.run(variant, config_of("nrt"))
    with pytest.raises(WorkspaceError, match=r"'baseline' was finished with another config.hidden \(16, now 8\)"):
        baseline.run(variant, config_of("nrt", hidden=8))
    variant.remove("explain")
    baseline.run(variant, config_of("nrt", split="val"))
    assert variant.manifest("baseline") == trained
    asked = explained_pairs(variant, "val")
    assert variant.read_table("explain", "predictions").num_rows == len(asked)


def test_dry_run_writes_nothing(workspace):
    variant = workspace.variant("att2seq", 0, ("baseline",))
    summary = baseline.run(variant, config_of("att2seq", limit=5), dry_run=True)
    train = len(Texts.load(variant).train)
    assert f"att2seq read {train} training explanations and explain 5 pairs" in summary
    assert variant.files("baseline") == variant.files("explain") == []


def test_the_reference_protocol_tells_the_feature_and_is_marked(workspace):
    variant = workspace.variant("peter_plus", 0, ("baseline",))
    config = config_of("peter_plus", feature="reference", epochs=1)
    pairs = baseline._pairs(variant, config)
    assert {"explanation", "feature"} <= set(pairs.column_names)
    assert pairs["feature"].to_pylist() == [FEATURES[i % 3] for i in pairs["item"].to_pylist()]
    baseline.run(variant, config)
    for stage in ("baseline", "explain"):
        assert variant.read_json(stage, "metrics.json")["told_the_feature"] == 1
    assert variant.manifest("explain")["fingerprint"]["config"]["feature"] == "reference"


def test_without_ratings_the_metrics_say_so(tmp_path):
    workspace = make_workspace(tmp_path / "w", ratings=False)
    variant = workspace.variant("nrt", 0, ("baseline",))
    baseline.run(variant, config_of("nrt", epochs=1))
    assert variant.read_json("baseline", "metrics.json")["ratings"] == 0
    assert not any("rating" in key for line in read_metrics(variant, "baseline") for key in line)


def test_pepler_takes_a_gpt2_from_a_folder(workspace, tmp_path):
    folder = tmp_path / "gpt2"
    tokenizer = train_tokenizer(["The user enjoys the item."], 300)
    tokenizer.save_pretrained(folder)
    size = {"vocab_size": len(tokenizer), "n_embd": 16, "n_layer": 1, "n_head": 2}
    GPT2LMHeadModel(GPT2Config(n_positions=200, **size)).save_pretrained(folder)
    variant = workspace.variant("pepler", 0, ("baseline",))
    config = config_of("pepler", model=str(folder))
    baseline.run(variant, config)
    metrics = variant.read_json("baseline", "metrics.json")
    assert "prompts/val/loss" in metrics
    assert "language/val/loss" not in metrics
    assert json.loads(variant.read_bytes("baseline", "config.json"))["language_model"]["n_positions"] == 200
    GPT2LMHeadModel(GPT2Config(n_positions=100, **size)).save_pretrained(folder)
    with pytest.raises(WorkspaceError, match=r"another inputs.model"):
        baseline.run(variant, config)
    with pytest.raises(ValueError, match="reads 100 positions; PEPLER needs 163"):
        baseline.run(variant, config, force=True)
    missing = config_of("pepler", model=str(tmp_path / "none"))
    with pytest.raises(ValueError, match=r"baseline.model = .*none' cannot be loaded"):
        baseline.run(variant, missing, force=True)


def test_a_device_that_is_not_there_is_named(workspace):
    config = BaselineConfig(name="nrt", compute={"device": "cuda:7"})
    with pytest.raises(ValueError, match="baseline.compute.device = 'cuda:7'"):
        baseline.run(workspace, config)


def test_heads_must_share_the_width():
    with pytest.raises(ValueError, match="hidden = 10 must be an even multiple of heads = 4"):
        BaselineConfig(hidden=10, heads=4)
