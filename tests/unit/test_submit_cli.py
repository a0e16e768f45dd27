"""The options of `xrec submit`, and what it says before it has reached a cluster."""

import pytest
from typer.testing import CliRunner

from xrec.cli import app
from xrec.config import ConfigError


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "give one of STAGE"),
        (["tune", "--attach", "xrec-tune-1"], "give one of STAGE"),
        (["--list", "--cancel", "xrec-tune-1"], "give one of STAGE"),
        (["tune", "--working-dir", ".", "--no-code"], "exclude each other"),
        (["tune", "--stage", "x"], "No such option"),
    ],
)
def test_wrong_usage_is_exit_code_two(arguments, said):
    result = CliRunner().invoke(app, ["submit", *arguments])
    assert result.exit_code == 2
    assert said in " ".join(result.output.replace("│", " ").split())


def test_settings_come_before_the_address(monkeypatch):
    """What is wrong here is told here, whether or not there is a cluster."""
    monkeypatch.setenv("RAY_ADDRESS", "local")
    monkeypatch.delenv("RAY_API_SERVER_ADDRESS", raising=False)
    arguments = ["submit", "tune", "--workspace", "s3://bucket/run"]
    result = CliRunner().invoke(app, [*arguments, "--set", "tune.epochs=many"])
    assert isinstance(result.exception, ConfigError) and "tune.epochs = 'many'" in str(result.exception)
    result = CliRunner().invoke(app, arguments)
    assert isinstance(result.exception, ConfigError) and "pass --address http://HOST:8265" in str(result.exception)
