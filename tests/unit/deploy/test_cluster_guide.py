"""docs/cluster.md says what is there: its settings, its commands, its files, and the messages that it explains."""

import re
import shlex

import pytest
from typer.testing import CliRunner

from ray_jobs.submission import JOBS
from tests.unit.deploy.files import ROOT, pins
from xrec.cli import app
from xrec.config import SECTIONS
from xrec.config_files import load_config

TEXT = (ROOT / "docs" / "cluster.md").read_text()
COMMANDS = [line.strip() for line in TEXT.splitlines() if line.startswith("    ")]
# Of Ray, of Kubernetes and of clients of S3.
OTHERS = {"No module named 'ray_jobs'", "NoCredentialsError", "403 Forbidden", "AccessDenied", "OutOfMemoryError"}


def rows(header: str) -> list[list[str]]:
    """The cells of the table below a header."""
    lines = TEXT[TEXT.index(header) :].splitlines()[2:]
    end = next(n for n, line in enumerate([*lines, ""]) if not line.startswith("|"))
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines[:end]]


def test_settings_that_stages_ask_by_are_fields():
    stages = set()
    for named, settings in rows("| stage | settings under"):
        for stage in re.findall(r"`(\w+)`", named):
            stages.add(stage)
            fields = SECTIONS[stage].model_fields["compute"].annotation.model_fields
            assert set(re.findall(r"`(\w+)`", settings)) - {"vllm"} - set(SECTIONS) <= set(fields), stage
    assert {"sample", "embed", "ingest", "profile", "tune", "explain", "evaluate"} <= stages


def test_commands_are_those_of_the_command_line():
    submitted = [shlex.split(line, comments=True) for line in COMMANDS if line.startswith("xrec submit ")]
    known = set(re.findall(r"--[\w-]+", CliRunner().invoke(app, ["submit", "--help"], env={"COLUMNS": "200"}).output))
    assert len(submitted) > 10
    for _, _, stage, *options in submitted:
        assert stage in JOBS or stage.startswith("--") or stage in ("STAGE", "…"), stage
        assert {word.strip("[]") for word in [stage, *options] if word.strip("[]").startswith("--")} <= known
        settings = [options[n + 1] for n, word in enumerate(options) if word == "--set"]
        load_config(ROOT / "configs" / "yelp_raw.yaml", settings)


@pytest.mark.parametrize("cells", rows("| message, or what is seen"), ids=lambda cells: cells[0][:40])
def test_messages_are_those_of_the_code(cells):
    assert len(cells) == 3 and all(cells)
    files = [*(ROOT / "ray_jobs").glob("*.py"), *(ROOT / "xrec").glob("*.py")]
    # Strings of several lines, joined.
    source = "".join(re.sub(r'"\s*\n\s*f?"', "", file.read_text()) for file in files)
    for message in set(re.findall(r"`([^`]+)`", cells[0])) - OTHERS - {"require_key"}:
        for part in re.split(r"…|\{.*?\}|\d+ x", message):
            assert part.strip(" :,;.") in source, (message, part)


def test_files_and_versions_exist():
    for link in re.findall(r"\]\(([^)#]+)\)", TEXT):
        assert link.startswith("https://") or (ROOT / "docs" / link).exists(), link
    for path in re.findall(r"`((?:tests|configs|deploy)/[\w./-]+)`", TEXT):
        assert (ROOT / path).exists(), path
    assert set(re.findall(r"ray(?:\[default\])?==([\d.]+)|Ray (2[\d.]+\d)", TEXT)) == {
        (pins()["ray"], ""),
        ("", pins()["ray"]),
    }
