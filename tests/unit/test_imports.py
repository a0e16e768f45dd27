"""The library stands alone: importing it brings no cluster, web framework or engine; the explainer, no graph code."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
# Imported where vLLM is, by the process that runs an engine or by vLLM itself.
_NEED_VLLM = {f"xrec.explainer.vllm_{name}" for name in ("engine", "inputs", "model")}
_PROGRAM = """
import importlib, json, sys
for module in {modules!r}:
    importlib.import_module(module)
print(json.dumps(sorted(sys.modules)))
"""


def _modules(folder: str) -> list[str]:
    """Every module below a folder of the project, by its dotted name."""
    files = sorted((ROOT / folder).rglob("*.py"))
    return [".".join(f.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__") for f in files]


def _loaded_after_importing(modules: list[str]) -> set[str]:
    """The modules that a fresh interpreter holds after importing some."""
    program = _PROGRAM.format(modules=modules)
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return set(json.loads(done.stdout.splitlines()[-1]))


def test_the_library_imports_no_cluster_web_framework_or_engine():
    modules = [name for name in _modules("xrec") if name not in _NEED_VLLM]
    loaded = _loaded_after_importing(modules)
    assert set(_modules("xrec")) > _NEED_VLLM
    assert {"xrec.cli", "xrec.tables", "xrec.explainer.explain", "xrec.graph.lightgcn"} <= set(modules) <= loaded
    assert not loaded & {"ray", "ray_jobs", "deepspeed", "fastapi", "starlette", "vllm", "serve"}


def test_the_explainer_imports_no_graph_package():
    modules = [name for name in _modules("xrec/explainer") if name not in _NEED_VLLM]
    loaded = _loaded_after_importing(modules)
    assert "xrec.explainer.explain" in loaded
    assert not loaded & {"torch_geometric", "xrec.graph"}


def test_the_server_imports_no_graph_package():
    # A replica may hold vLLM, and a process runs vLLM or the graph package, not both.
    modules = [*_modules("xrec/serving"), *_modules("serve")]
    loaded = _loaded_after_importing(modules)
    assert {"xrec.serving.live", "serve.app"} <= loaded
    assert not loaded & {"torch_geometric", "xrec.graph"}


def test_help_imports_no_torch():
    program = (
        "import sys; from typer.testing import CliRunner; from xrec.cli import app; "
        "result = CliRunner().invoke(app, ['--help']); assert result.exit_code == 0, result.output; "
        "assert not {'torch', 'ray', 'transformers', 'pandas'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("package", ["torchvision", "torchaudio"])
def test_packages_that_break_transformers_are_not_installed(package):
    assert importlib.util.find_spec(package) is None, (
        f"{package} is installed; a build that does not match torch's breaks transformers: pip uninstall {package}"
    )
