"""The files of deploy/: they are read by the tools they are for, and name what exists."""

import json
import re
from pathlib import Path

import pytest
import yaml
from ray.serve import Application
from ray.serve.schema import ServeDeploySchema

from serve import metrics
from serve.app import build_app
from serve.local import completed, deployment_yaml
from xrec.config import ConfigError, ServeConfig

FOLDER = Path(__file__).resolve().parents[3] / "deploy"


def check_deployment(text: str) -> ServeConfig:
    """Read as `serve deploy` reads it; its builder's arguments."""
    (application,) = ServeDeploySchema.model_validate(yaml.safe_load(text)).applications
    assert application.import_path == "serve.app:build_app"
    config = ServeConfig.model_validate(application.args)
    assert isinstance(build_app(config), Application)
    return config


def test_the_shipped_deployment_is_read_and_listens_on_loopback():
    text = (FOLDER / "serve.yaml").read_text()
    config = check_deployment(text)
    http = yaml.safe_load(text)["http_options"]
    assert http["host"] == "127.0.0.1"
    assert http["request_timeout_s"] > config.limits.deadline_seconds


def test_a_dry_run_prints_a_deployment_of_the_same_settings(tmp_path):
    config = completed({"mine": str(tmp_path)}, ServeConfig.model_validate({"limits": {"pairs": 7}}), "127.0.0.1")
    assert check_deployment(deployment_yaml(config, "127.0.0.1", 8000)) == config
    assert config.datasets == {"mine": str(tmp_path)} and config.limits.pairs == 7
    assert "127.0.0.1" in config.allowed_hosts


def test_a_public_address_needs_a_key(tmp_path, monkeypatch):
    monkeypatch.delenv("XREC_API_KEYS", raising=False)
    with pytest.raises(ConfigError, match="no API key"):
        completed({"mine": str(tmp_path)}, ServeConfig(), "0.0.0.0")
    monkeypatch.setenv("XREC_API_KEYS", "shop:shop-key-0123456789")
    assert completed({"mine": str(tmp_path)}, ServeConfig(), "0.0.0.0").allowed_hosts == ("*",)


def test_no_dataset_is_refused():
    with pytest.raises(ConfigError, match="no workspace is named"):
        completed({}, ServeConfig(), "127.0.0.1")
    with pytest.raises(ConfigError, match="datasets is empty"):
        build_app(ServeConfig())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"explainer": {"replicas": [3, 2]}}, "largest number is below"),
        ({"explainer": {"engine_arguments": {"model": "x"}}}, "tune.backbone"),
        ({"limits": {"rate": "often"}}, "600/minute"),
        ({"datasets": {"a b": "x"}}, "pattern"),
        ({"limits": {"pairs": 100, "in_flight": 50}}, "in_flight"),
    ],
)
def test_settings_that_cannot_work_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        ServeConfig.model_validate(settings)


def test_the_dashboard_shows_figures_that_exist():
    dashboard = (FOLDER / "grafana" / "xrec_serving.json").read_text()
    shown = set(re.findall(r"ray_(xrec_\w+?)(?:_bucket|_total)?[{\[),]", dashboard))
    source = Path(metrics.__file__).read_text()
    defined = set(re.findall(r'(?:Counter|Gauge|Histogram)\(\s*"(xrec_\w+)"', source))
    assert shown and shown == defined
    panels = json.loads(dashboard)["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    assert all(target["expr"] for panel in panels for target in panel["targets"])
