"""The files for KubeRay, without a Kubernetes cluster: their fields, secrets, probes, the server's config, the jobs."""

import importlib
import inspect
import json
import re
import shlex
from collections.abc import Iterator
from typing import Any

import pytest
import yaml
from ray.serve import Application
from ray.serve.schema import ServeDeploySchema

from serve.app import build_app
from tests.unit.deploy.files import KUBERAY, ROOT, pins
from tests.unit.deploy.kuberay_fields import SPECS, wrong_fields
from xrec.config import ServeConfig
from xrec.config_files import load_config

DOCUMENTS = {file.stem: yaml.safe_load(file.read_text()) for file in sorted(KUBERAY.glob("*.yaml"))}
RAY = {name: document for name, document in DOCUMENTS.items() if document["kind"] in SPECS}
CLUSTERS = {name: RAY[name]["spec"].get("rayClusterConfig", RAY[name]["spec"]) for name in ("cluster", "service")}
JOBS = [name for name, document in RAY.items() if document["kind"] == "RayJob"]
CODE_IN_IMAGE = "/home/ray/xrec/"


def groups(cluster: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {"head": cluster["headGroupSpec"], **{group["groupName"]: group for group in cluster["workerGroupSpecs"]}}


def pods() -> Iterator[tuple[str, dict[str, Any]]]:
    """Every pod of the files: where it is, and its spec."""
    for name, cluster in CLUSTERS.items():
        for group, spec in groups(cluster).items():
            yield f"{name} {group}", spec["template"]["spec"]
    for name in JOBS:
        yield f"{name} submitter", RAY[name]["spec"]["submitterPodTemplate"]["spec"]


@pytest.mark.parametrize("name", RAY)
def test_every_field_is_one_of_kuberays_or_of_a_pods(name):
    document = RAY[name]
    assert document["apiVersion"] == "ray.io/v1" and set(document) == {"apiVersion", "kind", "metadata", "spec"}
    assert wrong_fields(document["spec"], SPECS[document["kind"]], name) == []


@pytest.mark.parametrize(
    ("change", "wrong"),
    [
        (lambda s: s.update(enableAutoscaling=True), "enableAutoscaling"),
        (lambda s: s["authOptions"].update(mode=True), "mode"),
        (lambda s: s["workerGroupSpecs"][0].update(minReplica=1), "minReplica"),
        (lambda s: s["headGroupSpec"]["rayStartParams"].update({"num-cpus": 0}), "num-cpus"),
        (lambda s: s["headGroupSpec"]["template"]["spec"]["containers"][0].update(readinesProbe={}), "readinesProbe"),
        (lambda s: s["workerGroupSpecs"][1]["template"]["spec"]["containers"][0].update(ports={}), "ports"),
    ],
)
def test_a_wrong_field_is_found(change, wrong):
    # Not a copy by reference: YAML's anchors make one object of several pods.
    spec = json.loads(json.dumps(CLUSTERS["cluster"]))
    change(spec)
    (found,) = wrong_fields(spec, SPECS["RayCluster"], "spec")
    assert wrong in found


def test_pods_fit_kubernetes_own_schema():
    validate = pytest.importorskip("kubernetes_validate", reason="kubernetes-validate compares pods in full")
    for _, spec in pods():
        pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "a"}, "spec": spec}
        validate.validate(pod, "1.37", strict=True)
    validate.validate(DOCUMENTS["policy"], "1.37", strict=True)


@pytest.mark.parametrize("cluster", CLUSTERS.values(), ids=CLUSTERS)
def test_a_cluster_is_of_the_locked_ray_scales_by_itself_and_asks_for_the_token(cluster):
    assert cluster["rayVersion"] == pins()["ray"]
    assert cluster["enableInTreeAutoscaling"] and cluster["autoscalerOptions"]["version"] == "v2"
    assert cluster["authOptions"] == {"mode": "token", "secretName": "xrec-ray-token"}
    head, *workers = groups(cluster).values()
    assert head["rayStartParams"]["num-cpus"] == head["rayStartParams"]["num-gpus"] == "0"
    # Autoscaler v2 replaces pods itself.
    assert all(worker["template"]["spec"]["restartPolicy"] == "Never" for worker in workers)
    assert all(worker["minReplicas"] <= worker["replicas"] <= worker["maxReplicas"] for worker in workers)


def test_the_standing_cluster_starts_with_no_worker_and_asks_spot_nodes_first():
    workers = groups(CLUSTERS["cluster"])
    assert set(workers) == {"head", "cpu", "gpu", "gpu-spot"}
    assert all(group["minReplicas"] == 0 for name, group in workers.items() if name != "head")
    spot, gpu = workers["gpu-spot"], workers["gpu"]
    assert spot["priority"] > gpu.get("priority", 0) and spot["labels"] == {"ray.io/market-type": "spot"}
    assert "resources" not in spot and "nodeSelector" in spot["template"]["spec"]
    assert spot["template"]["spec"]["containers"] == gpu["template"]["spec"]["containers"]


@pytest.mark.parametrize(("where", "pod"), list(pods()), ids=lambda value: value if isinstance(value, str) else "")
def test_a_pod_has_limits_and_no_rights_that_it_does_not_need(where, pod):
    assert pod["securityContext"]["runAsNonRoot"] and pod["securityContext"]["runAsUser"] == 1000
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    (container,) = pod["containers"]
    security = container["securityContext"]
    assert security["allowPrivilegeEscalation"] is False and security["capabilities"] == {"drop": ["ALL"]}
    requests, limits = container["resources"]["requests"], container["resources"]["limits"]
    assert {"cpu", "memory"} <= set(requests) == set(limits)
    if "submitter" not in where:
        # KubeRay tells Ray the limits, so a pod is not given more than it was placed for.
        assert requests == limits
        assert {"startupProbe", "readinessProbe", "livenessProbe"} <= set(container)
        assert container["readinessProbe"]["failureThreshold"] <= container["startupProbe"]["failureThreshold"]
    paths = {container[kind]["httpGet"]["path"] for kind in container if kind.endswith("Probe")}
    # Ray answers these without the token.
    assert paths <= {"/api/gcs_healthz", "/api/local_raylet_healthz", "/-/healthz"}


def test_probes_ask_paths_that_need_no_token():
    from ray.dashboard import http_server_agent, http_server_head

    sources = [inspect.getsource(module) for module in (http_server_head, http_server_agent)]
    open_paths = [set(re.findall(r'"(/[-\w/]*healthz)"', source)) for source in sources]
    assert {"/api/gcs_healthz", "/api/local_raylet_healthz"} <= open_paths[0]
    assert "/api/local_raylet_healthz" in open_paths[1]


def test_secrets_are_named_and_never_written():
    def literal(value: Any, path: str = "") -> Iterator[str]:
        if isinstance(value, dict):
            named = value.get("name", "")
            if "value" in value and re.search(r"KEY|SECRET|TOKEN|PASSWORD", str(named)):
                yield f"{path}.{named}"
            for key, inner in value.items():
                if re.search(r"password|token|secret$", key, re.IGNORECASE) and isinstance(inner, str):
                    yield f"{path}.{key}"
                yield from literal(inner, f"{path}.{key}")
        elif isinstance(value, list):
            for inner in value:
                yield from literal(inner, path)

    assert [found for name, document in DOCUMENTS.items() for found in literal(document, name)] == []
    bad = {"env": [{"name": "OPENAI_API_KEY", "value": "x"}], "redis": {"redisPassword": "y"}}
    assert list(literal(bad)) == [".env.OPENAI_API_KEY", ".redis.redisPassword"]


def test_every_secret_is_made_in_the_readme():
    named = set(re.findall(r"(?:secretKeyRef: \{name: |secretName: )([\w-]+)", "".join(map(_text, DOCUMENTS))))
    keys = set(re.findall(r"secretKeyRef: \{name: ([\w-]+), key: (\w+)", "".join(map(_text, DOCUMENTS))))
    readme = (KUBERAY / "README.md").read_text().replace("\\\n", " ")
    made = dict(re.findall(r"create secret generic ([\w-]+)(.*)", readme))
    assert named == set(made)
    assert all(re.search(rf"--from-(file|literal)={key}=", made[name]) for name, key in keys)
    assert "--from-literal=auth_token=" in made["xrec-ray-token"]


@pytest.mark.parametrize("name", JOBS)
def test_a_jobs_command_is_one_of_ours_with_a_config_that_is_read(name):
    spec = RAY[name]["spec"]
    assert spec["clusterSelector"] == {"ray.io/cluster": RAY["cluster"]["metadata"]["name"]}
    # A driver without a request runs on the head.
    assert spec["entrypointNumCpus"] >= 1
    words = shlex.split(spec["entrypoint"])
    assert words[:2] == ["python", "-m"]
    module = importlib.import_module(words[2])
    assert words[2].startswith("ray_jobs.") and (hasattr(module, "run") or hasattr(module, "main"))
    options = list(zip(words[3::2], words[4::2], strict=True))
    assert {option for option, _ in options} <= {"--config", "--workspace", "--set"}
    given = dict(options)
    assert given["--config"].startswith(CODE_IN_IMAGE) and given["--workspace"].startswith("s3://")
    config = ROOT / given["--config"].removeprefix(CODE_IN_IMAGE)
    settings = load_config(config, [value for option, value in options if option == "--set"])
    stage = words[2].removeprefix("ray_jobs.")
    assert stage == "run" or settings.section(stage) is not None


def test_the_server_is_read_by_ray_serve_and_by_the_builder():
    deployed = ServeDeploySchema.model_validate(yaml.safe_load(RAY["service"]["spec"]["serveConfigV2"]))
    (application,) = deployed.applications
    assert application.import_path == "serve.app:build_app"
    config = ServeConfig.model_validate(application.args)
    assert isinstance(build_app(config), Application)
    # It listens to other pods, so it serves nobody without a key.
    assert deployed.http_options.host == "0.0.0.0" and config.require_key
    assert deployed.http_options.request_timeout_s > config.limits.deadline_seconds


def test_the_servers_nodes_have_room_for_its_replicas():
    config = ServeConfig.model_validate(
        yaml.safe_load(RAY["service"]["spec"]["serveConfigV2"])["applications"][0]["args"]
    )
    workers = groups(CLUSTERS["service"])
    limits = {
        name: group["template"]["spec"]["containers"][0]["resources"]["limits"] for name, group in workers.items()
    }
    assert float(limits["gpu"]["nvidia.com/gpu"]) >= config.explainer.gpus
    assert float(limits["gpu"]["cpu"]) >= config.explainer.cpus
    assert workers["gpu"]["maxReplicas"] >= config.explainer.replicas[1]
    drain = max(part.drain_seconds for part in (config.lookup, config.explainer, config.ingress))
    for name in ("cpu", "gpu"):
        pod = workers[name]["template"]["spec"]
        assert pod["terminationGracePeriodSeconds"] > drain
        environment = {variable["name"]: variable for variable in pod["containers"][0]["env"]}
        assert environment["XREC_API_KEYS"]["valueFrom"]["secretKeyRef"]["name"] == "xrec-api-keys"
        assert pod["containers"][0]["readinessProbe"]["httpGet"] == {"path": "/-/healthz", "port": 8000}


def test_the_policy_selects_the_pods_of_the_files():
    assert DOCUMENTS["policy"]["kind"] == "NetworkPolicy"
    selected = DOCUMENTS["policy"]["spec"]["podSelector"]["matchLabels"]
    templates = [g["template"] for cluster in CLUSTERS.values() for g in groups(cluster).values()]
    templates += [RAY[name]["spec"]["submitterPodTemplate"] for name in JOBS]
    assert len(templates) > 5 and all(template["metadata"]["labels"] == selected for template in templates)
    assert json.dumps(DOCUMENTS["policy"]["spec"]["policyTypes"]) == '["Ingress"]'


def _text(name: str) -> str:
    return (KUBERAY / f"{name}.yaml").read_text()
