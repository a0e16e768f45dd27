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
def s3_options():
    """The storage options of an S3-compatible server on this machine; its buckets are everybody's."""
    server_module = pytest.importorskip("moto.server")
    server = server_module.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    options = {"endpoint_url": f"http://{host}:{port}", "key": "nobody", "secret": "nothing"}
    yield options
    server.stop()


@pytest.fixture(scope="session")
def tuned_workspace(tmp_path_factory) -> Path:
    """A workspace as `xrec tune` leaves it, with random weights instead of trained ones; copy it to change it."""
    from tests.tiny_world import finish_tune, make_workspace

    workspace = make_workspace(tmp_path_factory.mktemp("tuned") / "w")
    finish_tune(workspace)
    return Path(workspace.path())


@pytest.fixture(scope="session")
def live_server(tmp_path_factory):
    """`xrec serve` on a tiny workspace, as the dataset `tiny`; a new user's requests are answered like anybody's."""
    from tests.serving_process import ServingProcess
    from tests.tiny_world import finish_tune, make_workspace

    workspace = make_workspace(tmp_path_factory.mktemp("serving") / "tiny", hostile=True)
    finish_tune(workspace)
    with ServingProcess(workspace.uri, {"explainer": {"threads": 1}, "cache": {"entries": 0}}) as server:
        yield server


def pytest_collection_modifyitems(items):
    # The server would otherwise take its share of the machine from all tests between its first and its last user.
    items.sort(key=lambda item: "live_server" in getattr(item, "fixturenames", ()))
