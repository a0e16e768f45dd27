"""What `benchmarks.cluster` looks at while a job runs: CPU in use, the driver's memory, bytes in the object stores."""

import contextlib
import os
import statistics
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import psutil
import requests

from tests.simulated_cluster import SimulatedCluster
from xrec.workspace import Workspace


def listed(folder: Path) -> Iterator[os.DirEntry]:
    """The files of a folder, none where it is not there yet."""
    if folder.is_dir():
        with os.scandir(folder) as entries:
            yield from entries


class CpuShare:
    """The share of this machine's CPU that is in use while all blocks of a job run."""

    def __init__(self, workspace: Workspace):
        self.folder, self.samples = Path(workspace.path("explain", "predictions")), []
        self.over = threading.Event()
        self.thread = threading.Thread(target=self._sample, daemon=True)

    def __enter__(self) -> "CpuShare":
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.over.set()
        self.thread.join()

    def share(self) -> float:
        """The median over the middle half of the time in which files of results appeared."""
        quarter = len(self.samples) // 4
        return statistics.median(self.samples[quarter : len(self.samples) - quarter] or [float("nan")])

    def _sample(self) -> None:
        psutil.cpu_percent()
        count = 0
        while not self.over.wait(1.0):
            used, found = psutil.cpu_percent() / 100, sum(1 for _ in listed(self.folder))
            if found > count > 0:
                self.samples.append(used)
            count = found


class Watch:
    """Every second: bytes that a driver holds for itself, and that lie in the cluster's object stores."""

    def __init__(self, cluster: SimulatedCluster, process: psutil.Popen):
        self.cluster, self.process = cluster, process
        self.driver: list[tuple[float, int]] = []
        self.stored: list[int] = []
        self.over = threading.Event()
        self.threads = [threading.Thread(target=f, daemon=True) for f in (self._watch_driver, self._watch_stores)]

    def __enter__(self) -> "Watch":
        for thread in self.threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.over.set()
        for thread in self.threads:
            thread.join()

    def driver_thirds(self, starts: np.ndarray, ends: np.ndarray, chosen: list[int]) -> tuple[float, float, float]:
        """Medians over the second and the last third of the time in which blocks ran, and the most ever; bytes."""
        low, high = starts[chosen].min(), ends[chosen].max()
        values = np.array([used for at, used in self.driver if low <= at <= high])
        third = len(values) // 3
        most = max(used for _, used in self.driver)
        return float(np.median(values[third : 2 * third])), float(np.median(values[2 * third :])), float(most)

    def most_stored(self) -> int:
        return max(self.stored)

    def _watch_driver(self) -> None:
        while not self.over.wait(1.0):
            with contextlib.suppress(psutil.Error):
                self.driver.append((time.time(), self.process.memory_full_info().uss))

    def _watch_stores(self) -> None:
        while not self.over.wait(2.0):
            with contextlib.suppress(requests.RequestException):
                self.stored.append(sum(n["raylet"]["objectStoreUsedMemory"] for n in self.cluster.nodes()))
