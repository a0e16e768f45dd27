"""`cluster.yaml` as Ray's cluster launcher reads it: its schema, before and after defaults, and what it must hold."""

import copy
import json
import re
import shlex
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import ray
import yaml
from ray.autoscaler._private.util import prepare_config, validate_config
from ray.autoscaler.v2.instance_manager.config import NodeTypeConfig
from ray.autoscaler.v2.scheduler import ResourceDemandScheduler, SchedulingRequest
from ray.autoscaler.v2.utils import ResourceRequestUtil

from tests.unit.deploy.files import ROOT, pins
from xrec import __version__

SCHEMA = json.loads((Path(ray.__file__).parent / "autoscaler" / "ray-schema.json").read_text())


@pytest.fixture
def raw() -> dict[str, Any]:
    return yaml.safe_load((ROOT / "cluster.yaml").read_text())


def validated(config: dict[str, Any]) -> dict[str, Any]:
    """The config with Ray's defaults; both it and that are valid.

    The raw file too, since `prepare_config` rewrites what older versions of the file had, such as a `min_workers` at
    the top, and the result passes.
    """
    jsonschema.validate(config, SCHEMA)
    prepared = prepare_config(copy.deepcopy(config))
    validate_config(prepared)
    return prepared


def launched(config: dict[str, Any], role: str) -> dict[str, str]:
    """The options of the one `ray start` of a role."""
    (command,) = [line for line in config[f"{role}_start_ray_commands"] if "ray start" in line]
    words = shlex.split(command[command.index("ray start") :])
    return {name: value for name, _, value in (word.partition("=") for word in words if word.startswith("--"))}


def test_it_is_valid_as_written_and_with_rays_defaults(raw):
    prepared = validated(raw)
    groups = prepared["available_node_types"]
    assert set(groups) == {"head", "cpu", "gpu", "gpu_spot"}
    assert groups["head"]["resources"] == {"CPU": 0} and groups["head"]["max_workers"] == 0
    workers = {name: group for name, group in groups.items() if name != "head"}
    assert all(group["min_workers"] == 0 < group["max_workers"] for group in workers.values())
    assert sum(group["max_workers"] for group in workers.values()) == prepared["max_workers"]
    assert prepared["idle_timeout_minutes"] <= 10


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.update(min_workers=0), "min_workers"),
        (lambda c: c.update(max_workerss=3), "max_workerss"),
        (lambda c: c.update(head_node_type="nope"), "head_node_type"),
        (lambda c: c.pop("provider"), "provider"),
        (lambda c: c["docker"].update(imag="x"), "imag"),
        (lambda c: c["available_node_types"]["gpu"].update(gpus=4), "gpus"),
        (lambda c: c["available_node_types"]["gpu"]["resources"].update(GPU="four"), "four"),
        (lambda c: c["available_node_types"]["gpu"].update(min_workers=99), "min_workers"),
        (lambda c: c["available_node_types"]["cpu"].pop("node_config"), "node_config"),
    ],
)
def test_a_wrong_change_is_found(raw, change, message):
    change(raw)
    with pytest.raises((jsonschema.ValidationError, ValueError), match=message):
        validated(raw)


def test_the_spot_group_is_the_gpu_group_at_another_price_and_comes_first(raw):
    gpu, spot = (raw["available_node_types"][name] for name in ("gpu", "gpu_spot"))
    assert spot["node_config"].pop("InstanceMarketOptions") == {"MarketType": "spot"}
    assert "InstanceMarketOptions" not in gpu["node_config"] and spot["node_config"] == gpu["node_config"]
    assert spot["resources"] == gpu["resources"] and spot["labels"] == {"ray.io/market-type": "spot"}
    assert spot["priority"] > gpu["priority"]


@pytest.mark.parametrize(
    ("demand", "group"),
    [
        ({"CPU": 4, "GPU": 1}, "gpu_spot"),
        ({"GPU": 4}, "gpu_spot"),
        ({"CPU": 1}, "cpu"),
        ({"CPU": 16, "memory": 2**30}, "cpu"),
    ],
)
def test_rays_autoscaler_starts_the_cheapest_group_that_fits(raw, demand, group):
    types = {}
    for name, kind in validated(raw)["available_node_types"].items():
        # What the launcher finds out of the machines themselves.
        resources = {**kind["resources"], "memory": 2**36, "object_store_memory": 2**34}
        labels = kind.get("labels", {})
        limits = {"min_worker_nodes": kind["min_workers"], "max_worker_nodes": kind["max_workers"]}
        types[name] = NodeTypeConfig(
            name=name, resources=resources, labels=labels, priority=kind.get("priority", 0), **limits
        )
    requests = ResourceRequestUtil.group_by_count([ResourceRequestUtil.make(demand)])
    reply = ResourceDemandScheduler().schedule(
        SchedulingRequest(
            node_type_configs=types,
            max_num_nodes=raw["max_workers"],
            resource_requests=requests,
            disable_launch_config_check=True,
        )
    )
    assert [(launch.instance_type, launch.count) for launch in reply.to_launch] == [(group, 1)]


def test_versions_are_those_of_the_lock(raw):
    prepared = validated(raw)
    # Ray's own setup commands for AWS would install a nightly build.
    for commands in (prepared["head_setup_commands"], prepared["worker_setup_commands"]):
        assert commands == raw["setup_commands"] and len(commands) == 1
        assert re.search(rf"ray\.__version__ == '{re.escape(pins()['ray'])}'", commands[0])
    assert "nightly" not in json.dumps(prepared) and "ray-wheels" not in json.dumps(prepared)
    assert raw["docker"]["image"] == f"xrec:{__version__.rpartition('.')[0]}-gpu"


def test_the_dashboard_is_on_loopback_and_the_head_has_no_work(raw):
    head = launched(raw, "head")
    assert head["--dashboard-host"] == "127.0.0.1" and head["--num-cpus"] == head["--num-gpus"] == "0"
    assert head["--autoscaling-config"] == "~/ray_bootstrap_config.yaml" and "--head" in head
    worker = launched(raw, "worker")
    assert worker["--address"] == "$RAY_HEAD_IP:6379" and "--head" not in worker
    assert head["--port"] == "6379" and head["--object-manager-port"] == worker["--object-manager-port"]
    assert "0.0.0.0" not in json.dumps(raw)


def test_every_node_asks_for_the_token_and_it_comes_from_a_file(raw):
    variables = dict(
        option.removeprefix("--env ").split("=", 1)
        for option in raw["docker"]["run_options"]
        if option.startswith("--env ")
    )
    assert variables["RAY_AUTH_MODE"] == "token" and variables["RAY_enable_autoscaler_v2"] == "1"
    folder, _, name = variables["RAY_AUTH_TOKEN_PATH"].rpartition("/")
    assert name == "ray_token" and folder in raw["file_mounts"]
    # The folder of secrets is sent, not written here.
    assert "RAY_AUTH_TOKEN" not in variables and not re.search(r"[0-9a-f]{32}", json.dumps(raw))
