"""The command line: verbs, exit codes, and what stderr says last."""

import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

import xrec
from ray_jobs.job import errors_for_users
from xrec.cli import app
from xrec.config import STAGES

ROOT = Path(__file__).resolve().parents[2]
VERBS = [*STAGES, "run"]


def run_cli(*arguments: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "xrec.cli", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


def last_line(text: str) -> str:
    return text.strip().splitlines()[-1]


@pytest.mark.parametrize("verb", VERBS)
def test_help_of_every_verb_has_an_example(verb):
    result = CliRunner().invoke(app, [verb, "--help"], env={"COLUMNS": "200"})
    assert result.exit_code == 0
    assert f"xrec {verb}" in result.output
    assert "Example" in result.output
    for option in ("--workspace", "--set", "--force", "--dry-run"):
        assert option in result.output


def test_version():
    result = CliRunner().invoke(app, ["--version"])
    assert result.exit_code == 0
    assert result.output.strip() == f"xrec {xrec.__version__}"


@pytest.mark.parametrize(
    "arguments",
    [["nonsense"], ["sample", "--users", "many"], ["import"], ["run"], ["explain", "--user", "u1"]],
    ids=["unknown verb", "not a number", "no folder", "no config", "half a pair"],
)
def test_wrong_usage_exits_with_2(arguments):
    assert CliRunner().invoke(app, arguments).exit_code == 2


def test_sample_writes_a_workspace_and_says_so(tmp_path):
    arguments = ["sample", "--workspace", str(tmp_path / "w"), "--users", "30", "--items", "20"]
    first = run_cli(*arguments, "--interactions-per-user", "5", "--seed", "7")
    assert first.returncode == 0, first.stderr
    assert "30 users, 20 items" in first.stdout and str(tmp_path / "w" / "data") in first.stdout
    assert (tmp_path / "w" / "data" / "manifest.json").is_file()
    again = run_cli(*arguments, "--interactions-per-user", "5", "--seed", "7")
    assert again.returncode == 0 and "already finished" in again.stdout


def test_a_dry_run_writes_nothing(tmp_path):
    result = CliRunner().invoke(app, ["sample", "-w", str(tmp_path / "w"), "--dry-run"])
    assert result.exit_code == 0 and "would" in result.output
    assert not (tmp_path / "w").exists()


def test_a_flag_wins_over_set(tmp_path):
    arguments = ["sample", "-w", str(tmp_path / "w"), "--set", "sample.users=77", "--users", "55", "--dry-run"]
    assert "55 users" in CliRunner().invoke(app, arguments).output


def test_a_changed_setting_is_refused_by_name(tmp_path):
    arguments = ["sample", "-w", str(tmp_path / "w"), "--users", "30", "--items", "20", "--interactions-per-user", "5"]
    assert run_cli(*arguments).returncode == 0
    refused = run_cli(*arguments, "--seed", "3")
    assert refused.returncode == 1
    assert "config.seed (0, now 3)" in last_line(refused.stderr) and "--force" in last_line(refused.stderr)
    assert run_cli(*arguments, "--seed", "3", "--force").returncode == 0


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["preprocess"], "no workspace is named; pass --workspace"),
        (["preprocess", "-w", "W"], "has not finished"),
        (["sample", "-w", "W", "--set", "sample.user=3"], "sample.user is not a setting"),
        (["sample", "-w", "W", "--set", "sample.users=-3"], "sample.users = -3"),
        (["run", "absent.yaml", "-w", "W"], "'absent.yaml' does not exist"),
        (["import", "absent", "-w", "W"], "absent"),
        (["ingest", "ebay", "absent.json", "-w", "W"], "ingest.source = 'ebay'"),
        (["ingest", "yelp", "absent.json", "-w", "W"], "'absent.json' names no file"),
        (["profile", "-w", "W"], "'data' has not finished; run `xrec ingest`"),
        (["profile", "-w", "W", "--set", "profile.backend=openai"], "profile: model is not set"),
    ],
)
def test_errors_name_the_cause_on_the_last_line(arguments, said, tmp_path):
    given = [str(tmp_path / "w") if a == "W" else a for a in arguments]
    result = run_cli(*given)
    assert result.returncode == 1
    assert said in last_line(result.stderr)
    assert "Traceback" not in result.stderr


def test_repair_reaches_the_stage(monkeypatch, tmp_path):
    asked = []
    monkeypatch.setattr("ray_jobs.profile.run", lambda *_, **flags: asked.append(flags) or "profile: done")
    for more in ([], ["--repair"]):
        assert CliRunner().invoke(app, ["profile", "-w", str(tmp_path / "w"), *more]).output == "profile: done\n"
    assert [flags["repair"] for flags in asked] == [False, True]


def test_a_config_without_stages_is_refused(tmp_path):
    config = tmp_path / "empty.yaml"
    config.write_text("workspace: somewhere\n")
    result = run_cli("run", str(config))
    assert result.returncode == 1 and "names no stage" in last_line(result.stderr)


def test_unexpected_errors_keep_their_traceback(monkeypatch):
    with pytest.raises(ZeroDivisionError), errors_for_users():
        _ = 1 / 0
    monkeypatch.setenv("XREC_TRACEBACK", "1")
    with pytest.raises(ValueError, match="asked for"), errors_for_users():
        raise ValueError("asked for")


def test_a_missing_extra_is_named(capsys):
    with pytest.raises(SystemExit) as caught, errors_for_users():
        raise ModuleNotFoundError("No module named 'bert_score'", name="bert_score")
    assert caught.value.code == 1
    assert "pip install 'xrec[evaluation]'" in capsys.readouterr().err


def test_a_stage_module_is_a_command_too(tmp_path):
    command = [sys.executable, "-m", "ray_jobs.sample", "--workspace", str(tmp_path / "w"), "--dry-run"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 0 and "would" in result.stdout
    wrong = subprocess.run([*command, "--nonsense"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert wrong.returncode == 2
