"""Jobs of a cluster over its dashboard's HTTP API: start one, stop it, list them.

What a job consists of is `submission`'s business, and how one is followed `job_following`'s. Authentication is Ray's
own: a token by `RAY_AUTH_TOKEN` or `RAY_AUTH_TOKEN_PATH`, with `RAY_AUTH_MODE=token`.
"""

import logging
import os
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import requests
from ray.exceptions import AuthenticationError
from ray.job_submission import JobDetails, JobSubmissionClient, JobType
from ray.util.state import list_nodes

from ray_jobs.demands import ClusterShape
from ray_jobs.submission import Submission, is_folder, job_folder, job_resources, refuse_unplaceable
from xrec.config import ConfigError
from xrec.workspace import WorkspaceError

_ADDRESS_VARIABLE = "RAY_API_SERVER_ADDRESS"
_CONNECT_SECONDS, _ANSWER_SECONDS = 10, 120
_STOP_SECONDS = 60.0
_PENDING_NODES, _PENDING_DEMANDS = r"Pending:.*?(?=\nRecent)", r"Pending Demands:.*"
# These tell of every package and of every stream that is closed.
_TALKATIVE = (
    "ray.dashboard.modules.dashboard_sdk",
    "ray.dashboard.modules.job.sdk",
    "ray._private.runtime_env.packaging",
)

Say = Callable[[str], None]


class _Client(JobSubmissionClient):
    """Ray's client with limits on how long an address may stay silent; its own waits for minutes."""

    def _do_request(self, method: str, endpoint: str, **kwargs: Any) -> requests.Response:
        return super()._do_request(method, endpoint, timeout=(_CONNECT_SECONDS, _ANSWER_SECONDS), **kwargs)


class Jobs:
    """The jobs of one cluster.

    Args:
        address: URL of its dashboard; default: `RAY_API_SERVER_ADDRESS`, else `RAY_ADDRESS` where that is a URL.
        say: takes remarks for the user, which are no part of a job's output.

    Raises:
        ConfigError: no address, or no URL.
        ConnectionError: no dashboard of Ray is there.
        PermissionError: the token is absent or wrong.
    """

    def __init__(self, address: str | None, say: Say):
        self.address, self.say = dashboard_url(address), say
        for name in _TALKATIVE:
            logging.getLogger(name).setLevel(logging.WARNING)
        with clear_errors(self.address), _named(self.address):
            try:
                self.client = _Client(self.address)
            except (requests.HTTPError, requests.JSONDecodeError, KeyError) as error:
                raise OSError(f"what answers at {self.address} is no dashboard of Ray: {first_line(error)}") from error

    def submit(self, submission: Submission) -> str:
        """Send a job; returns its name.

        Raises:
            WorkspaceError: no node has room for its driver, and none will.
        """
        with clear_errors(self.address):
            self._check_nodes(submission)
            with job_folder(submission) as folder:
                return self.client.submit_job(
                    entrypoint=submission.entrypoint,
                    submission_id=submission.new_id(),
                    runtime_env={"working_dir": str(folder), "env_vars": submission.environment},
                    metadata=submission.metadata(),
                    **job_resources(submission.resources),
                )

    def stop(self, job: str) -> JobDetails:
        """Stop a job, and wait until it has ended.

        Raises:
            ValueError: the cluster knows no such job.
            TimeoutError: it has not ended within a minute.
        """
        with clear_errors(self.address):
            self.details(job)
            self.client.stop_job(job)
            deadline = time.monotonic() + _STOP_SECONDS
            while not (details := self.details(job)).status.is_terminal():
                if time.monotonic() > deadline:
                    raise TimeoutError(f"job {job} was told to stop and has not ended within {_STOP_SECONDS:g} s")
                time.sleep(0.5)
            return details

    def submitted(self) -> list[JobDetails]:
        """The jobs that were submitted, the oldest first."""
        with clear_errors(self.address):
            found = [job for job in self.client.list_jobs() if job.type == JobType.SUBMISSION]
        return sorted(found, key=lambda job: job.start_time or 0)

    def details(self, job: str) -> JobDetails:
        """What the cluster knows of a job.

        Raises:
            ValueError: nothing.
        """
        try:
            return self.client.get_job_info(job)
        except RuntimeError as error:
            if "status code 404" not in str(error):
                raise
            raise ValueError(
                f"the cluster at {self.address} knows no job {job!r}; list them with `xrec submit --list`. "
                "A head that was restarted has forgotten its jobs, unless it keeps its state in Redis"
            ) from error

    def _check_nodes(self, submission: Submission) -> None:
        with _named(self.address):
            known: list[Any] = list_nodes(self.address, detail=True, limit=10_000)
        nodes = [node for node in known if node.state == "ALIVE"]
        if is_folder(submission.workspace) and len({node.node_ip for node in nodes}) > 1:
            self.say(f"workspace {submission.workspace} is a folder: every node has to share it")
        resources = [node.resources_total or {} for node in nodes]
        refuse_unplaceable(submission, ClusterShape(resources, open_ended=self.grows()))

    def grows(self) -> bool:
        """Whether an autoscaler may add nodes, as far as can be told; of which kinds, the dashboard does not know."""
        report = (self._status("0") or {}).get("autoscalerReport") or {}
        kinds = report.get("nodeTypeMapping")
        # Where there is no autoscaler, each node is reported as a type of its own, named after it.
        return not kinds or any(kind != f"node_{node}" for node, kind in kinds.items())

    def pending(self) -> str:
        """What the autoscaler says of nodes on their way and of what waits; empty where it says nothing."""
        text = str(self._status("1") or "")
        found = (re.search(pattern, text, re.DOTALL) for pattern in (_PENDING_NODES, _PENDING_DEMANDS))
        return "; ".join(" ".join(one[0].split()) for one in found if one)

    def _status(self, formatted: str) -> Any:
        answer = self.client._do_request("GET", "/api/cluster_status", params={"format": formatted})
        return answer.json()["data"]["clusterStatus"]


def dashboard_url(given: str | None) -> str:
    """The dashboard's address, from the command line or from the environment as `ray job` reads it.

    Raises:
        ConfigError: there is none, or it is not a URL.
    """
    source, address = "--address", given
    for name in (_ADDRESS_VARIABLE, "RAY_ADDRESS"):
        if not address and os.environ.get(name, "local") != "local":
            source, address = name, os.environ[name]
    if not address:
        raise ConfigError(
            f"no cluster is named; pass --address http://HOST:8265 (its dashboard), or set {_ADDRESS_VARIABLE}"
        )
    if not re.match(r"https?://[^/]", address):
        raise ConfigError(
            f"{source} = {address!r} is not the URL of a dashboard, such as http://HOST:8265; "
            f"pass that by --address or {_ADDRESS_VARIABLE}"
        )
    return address.rstrip("/")


@contextmanager
def _named(address: str) -> Iterator[None]:
    """Ray's clients let the environment override the address that they are given."""
    before = os.environ.get(_ADDRESS_VARIABLE)
    os.environ[_ADDRESS_VARIABLE] = address
    try:
        yield
    finally:
        if before is None:
            del os.environ[_ADDRESS_VARIABLE]
        else:
            os.environ[_ADDRESS_VARIABLE] = before


@contextmanager
def clear_errors(address: str) -> Iterator[None]:
    """Say in one line, with the remedy, what Ray says in several."""
    try:
        yield
    except AuthenticationError as error:
        raise PermissionError(_token_remedy(address, "Authentication failed" in str(error))) from error
    except (requests.ConnectionError, requests.Timeout, ConnectionError) as error:
        raise ConnectionError(
            f"no dashboard of Ray answers at {address}; check the address, and that its port is forwarded "
            "(`ray dashboard cluster.yaml`, or `kubectl port-forward svc/NAME-head-svc 8265`)"
        ) from error
    except RuntimeError as error:
        if isinstance(error, WorkspaceError):
            raise
        raise OSError(f"the cluster at {address} refused: {error}") from error


def _token_remedy(address: str, wrong: bool) -> str:
    source = next((n for n in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH") if os.environ.get(n)), None)
    if wrong:
        return (
            f"the cluster at {address} refused the token of {source or '~/.ray/auth_token'}; give that of this "
            "cluster in RAY_AUTH_TOKEN, or name its file in RAY_AUTH_TOKEN_PATH"
        )
    return (
        f"the cluster at {address} wants a token: set RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN_PATH to the token's "
        "file (or RAY_AUTH_TOKEN to the token)"
    )


def first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
