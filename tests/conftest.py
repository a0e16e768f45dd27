"""Fixtures and the environment that every test shares."""

import os
import secrets
import tempfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

# Set before anything imports torch, tokenizers, DeepSpeed or Ray, and inherited by their processes. Ray would otherwise
# write a token into the home folder, or join a cluster that happens to run on this machine.
_token = Path(tempfile.mkdtemp(prefix="xrec-ray-")) / "token"
_token.write_text(secrets.token_hex(32))
_ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "HF_HUB_OFFLINE": "1",
    "RAY_ADDRESS": "local",
    "RAY_AUTH_MODE": "token",
    "RAY_AUTH_TOKEN_PATH": str(_token),
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.25",
    "RAY_USAGE_STATS_ENABLED": "0",
}
os.environ.update(_ENVIRONMENT)


@pytest.fixture(scope="session")
def release_data() -> Path:
    """The folder of published data files that lies beside the project; the test is skipped where there is none."""
    for folder in Path(__file__).resolve().parents:
        found = folder / "shared" / "data"
        if found.is_dir():
            return found
    pytest.skip("the published data files (shared/data beside the project) are not here")


@pytest.fixture(scope="session")
def ray_session():
    """One local Ray session for all tests of this process."""
    import ray

    from ray_jobs.runtime import start_ray

    start_ray(4)
    yield
    ray.shutdown()


@pytest.fixture(scope="session")
def tuned_workspace(tmp_path_factory) -> Path:
    """A workspace as `xrec tune` leaves it, with random weights instead of trained ones; copy it to change it."""
    import torch

    from tests.tiny_world import DIM, make_workspace
    from xrec.explainer.adapter import AdapterSpec, XRecAdapter

    workspace = make_workspace(tmp_path_factory.mktemp("tuned") / "w")
    torch.manual_seed(0)
    stage = workspace.stage("tune", {"backbone": None}, inputs=["preprocess", "embed", "backbone"])
    adapter = XRecAdapter(AdapterSpec(embedding_dim=DIM, hidden_size=32, experts=2))
    adapter.save_pretrained(workspace.path("tune", "adapter"))
    stage.finish({})
    return Path(workspace.path())
