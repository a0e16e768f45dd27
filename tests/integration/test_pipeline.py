"""Every stage, by `xrec run` on a tiny sample world: once, again, with a changed setting, and by force."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.random_models import save_llama
from xrec.config_files import load_config
from xrec.workspace import Workspace

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = ["data", "preprocess", "embed", "backbone", "tune", "explain", "evaluate", "report"]
SETTINGS = """
sample: {users: 60, items: 40, interactions_per_user: 10, features: 4}
preprocess: {}
embed: {dim: 16, layers: 2, batch_size: 256, max_epochs: 5, learning_rate: 5.0e-3}
backbone: {pretrained: BACKBONE}
tune: {epochs: 1, validate_every: 20, adapter: {experts: 2}, prompt: {profiles: false}}
explain: {limit: 16, controls: [shuffled], max_new_tokens: 24, compute: {rows_per_block: 16}}
evaluate: {bootstrap: 50, likelihood_rows: 16, probe_words: 3}
report: {examples: 2}
"""
# Words of the sample world's explanations.
CORPUS = ["The user would enjoy this place for its warm bread, fresh coffee and quiet garden. user item record profile"]


def xrec(*arguments: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "xrec.cli", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def config(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("config")
    backbone = save_llama(folder / "backbone", CORPUS, max_position_embeddings=1024)
    (folder / "tiny.yaml").write_text(SETTINGS.replace("BACKBONE", backbone))
    return folder / "tiny.yaml"


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("pipeline") / "w"


@pytest.fixture(scope="module")
def first(config, folder) -> subprocess.CompletedProcess:
    return xrec("run", str(config), "--workspace", str(folder))


def contents(folder: Path) -> dict[str, int]:
    return {str(f): f.stat().st_mtime_ns for f in folder.rglob("*") if f.is_file()}


def test_a_dry_run_of_everything_writes_nothing(config, folder):
    result = xrec("run", str(config), "--workspace", str(folder / "never"), "--dry-run")
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("would") >= len(FOLDERS)
    assert not (folder / "never").exists()


def test_every_stage_finishes_and_reports(first, folder):
    assert first.returncode == 0, first.stderr
    for stage in FOLDERS:
        manifest = json.loads((folder / stage / "manifest.json").read_text())
        assert manifest["stage"] == stage and manifest["outputs"]
        figures = json.loads((folder / stage / "metrics.json").read_text())
        assert all(isinstance(v, int | float) for v in figures.values() if v is not None)
    assert "A few explanations" in first.stdout
    assert first.stdout.strip().splitlines()[-2:] == [
        f"report: {folder}/report/report.html",
        f"live, on a web page and an API: xrec serve {folder}",
    ]
    page = (folder / "report" / "report.html").read_text()
    assert page.lstrip().lower().startswith("<!doctype html>")
    assert "http://" not in page.replace("http://www.w3.org", "") and "<script src" not in page


def test_predictions_are_the_requested_rows(first, folder):
    workspace = Workspace(folder)
    rows = workspace.read_table("explain", "predictions").to_pylist()
    explained = workspace.read_text_table("explanations").to_pylist()
    pairs = sorted((r["user"], r["item"]) for r in explained if r["split"] == "test")[:16]
    expected = sorted((*pair, signal) for pair in pairs for signal in ("true", "shuffled"))
    assert sorted((r["user"], r["item"], r["signal"]) for r in rows) == expected


def test_one_pair_on_the_screen_is_the_batch_row(first, config, folder):
    workspace = Workspace(folder)
    row = next(r for r in workspace.read_table("explain", "predictions").to_pylist() if r["signal"] == "true")
    user = workspace.read_table("preprocess", "users").to_pylist()[row["user"]]["user_id"]
    item = workspace.read_table("preprocess", "items_index").to_pylist()[row["item"]]["item_id"]
    shown = xrec("explain", "-w", str(folder), "--config", str(config), "--user", user, "--item", item)
    assert shown.returncode == 0, shown.stderr
    assert shown.stdout.strip() == row["explanation"].strip()
    unknown = xrec("explain", "-w", str(folder), "--user", "nobody", "--item", item)
    assert unknown.returncode == 1 and "--user 'nobody' is not in" in unknown.stderr.strip().splitlines()[-1]


def test_a_second_run_does_nothing(first, config, folder):
    before = contents(folder)
    again = xrec("run", str(config), "--workspace", str(folder))
    assert again.returncode == 0, again.stderr
    assert again.stdout.count("already finished") == len(load_config(config).stages())
    assert contents(folder) == before


def test_a_changed_setting_is_refused_by_name_and_rebuilt_by_force(first, config, folder):
    before = contents(folder)
    refused = xrec("run", str(config), "--workspace", str(folder), "--set", "embed.seed=1")
    assert refused.returncode == 1
    last = refused.stderr.strip().splitlines()[-1]
    assert "'embed'" in last and "config.seed (0, now 1)" in last and "--force" in last
    assert contents(folder) == before

    settings = ["--config", str(config), "--workspace", str(folder)]
    forced = xrec("embed", *settings, "--set", "embed.seed=1", "--force")
    assert forced.returncode == 0 and "already finished" not in forced.stdout
    manifest = json.loads((folder / "embed" / "manifest.json").read_text())
    assert manifest["fingerprint"]["config"]["seed"] == 1
    stale = xrec("tune", *settings)
    assert stale.returncode == 1 and "inputs.embed" in stale.stderr.strip().splitlines()[-1]
