"""What does the server cost? Its throughput and latency on loopback against its engine alone, and what overload does.

    bare       the server's explainer (`xrec.serving.live`) on the same engine, asked in this process
    server     `xrec serve`: HTTP, ingress, lookup, explainer; one pair a request

Saturation: so many clients, each asking for its next pair when it has its last. One client: the same with one.
Overload: requests at ten times the server's rate at saturation, whatever becomes of them. The engine is the Hugging
Face one on one thread, on a random LLaMA whose explanations all have the same length. The two take turns to be first.
Ratios are medians of each round's own ratio, with the lowest and highest.

    python -m benchmarks.serving [--rounds 3 --requests 128 --clients 32]
"""

import argparse
import asyncio
import itertools
import statistics
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from rich.console import Console
from rich.table import Table

from benchmarks.explain_job import make_workspace
from benchmarks.generation_world import Shape, save_model, set_environment
from tests.serving.load import Reply, closed_loop, open_loop
from tests.serving_process import ServingProcess
from xrec.config.serve import ExplainerReplicas
from xrec.explainer.engine import Sampling
from xrec.serving.live import ExplanationTask, LiveExplainer
from xrec.serving.lookup import DatasetLookup
from xrec.serving.publishing import publish
from xrec.serving.queries import ItemQuery, UserQuery
from xrec.serving.snapshot import Snapshot

USERS, ITEMS = 40, 10
MEGABYTE = 2**20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options = {"rounds": 3, "requests": 128, "clients": 32, "tokens": 48, "alone": 30, "overload-seconds": 30}
    for name, default in options.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    given = parser.parse_args()
    set_environment(1)
    with tempfile.TemporaryDirectory() as folder:
        asyncio.run(compare(given, Path(folder)))


async def compare(given: argparse.Namespace, folder: Path) -> None:
    save_model(folder / "model", Shape())
    workspace = make_workspace(folder, 0, USERS, ITEMS)
    publish(workspace)
    replicas: dict[str, Any] = {"engine": "hf", "threads": 1, "batch_size": given.clients}
    limits = {"new_tokens": given.tokens, "words": given.tokens, "in_flight": 2 * given.clients, "pairs": 1}
    live, lookup = _bare(Snapshot.open(workspace), replicas)
    with ServingProcess(workspace.uri, {"explainer": replicas, "limits": limits}) as server:
        url, payloads = server.url + "v1/explanations", itertools.cycle(_payloads(given))
        await closed_loop(url, [next(payloads) for _ in range(4)], 4, requests=4)
        speed: dict[str, list[float]] = {"bare": [], "server": []}
        alone: dict[str, list[list[float]]] = {"bare": [], "server": []}
        for number in range(given.rounds):
            for name in ("bare", "server") if number % 2 else ("server", "bare"):
                for clients, count in ((given.clients, given.requests), (1, given.alone)):
                    asked = [next(payloads) for _ in range(count)]
                    start = time.perf_counter()
                    if name == "bare":
                        taken = await _ask_bare(live, lookup, asked, clients)
                    else:
                        taken = _accepted(await closed_loop(url, asked, clients, requests=count), count)
                    if clients == 1:
                        alone[name].append(taken)
                    else:
                        speed[name].append(count / (time.perf_counter() - start))
        _show(given, speed, alone)
        await _overload(given, server, url, list(_payloads(given)), statistics.median(speed["server"]), limits)
    live.engine.close()


def _bare(snapshot: Snapshot, replicas: dict[str, Any]) -> tuple[LiveExplainer, DatasetLookup]:
    from serve.explainer import open_live_explainer

    options = ExplainerReplicas.model_validate(replicas)
    workspace = str(snapshot.folder.parent.parent)
    return open_live_explainer(workspace, options), DatasetLookup(snapshot)


def _payloads(given: argparse.Namespace) -> list[dict[str, Any]]:
    how = {"max_new_tokens": given.tokens, "max_words": given.tokens}
    return [
        {"pairs": [{"user_id": f"u{k % USERS}", "item_id": f"i{(7 * k) % (USERS * ITEMS)}"}], **how}
        for k in range(USERS * ITEMS)
    ]


async def _ask_bare(
    live: LiveExplainer, lookup: DatasetLookup, asked: list[dict[str, Any]], clients: int
) -> list[float]:
    """Seconds that each explanation took. What is looked up is looked up beforehand."""
    users = [UserQuery(user_id=body["pairs"][0]["user_id"]) for body in asked]
    items = [ItemQuery(item_id=body["pairs"][0]["item_id"]) for body in asked]
    tokens = asked[0]["max_new_tokens"]
    sampling = Sampling(max_words=tokens, max_new_tokens=tokens)
    tasks = iter([ExplanationTask(inputs, sampling) for inputs in lookup.resolve(users, items, "true")])
    seconds = []

    async def client() -> None:
        for task in tasks:
            start = time.perf_counter()
            (answer,) = await live.explain([task])
            _check_tokens(answer.tokens, tokens)
            seconds.append(time.perf_counter() - start)

    await asyncio.gather(*(client() for _ in range(clients)))
    return seconds


def _accepted(replies: list[Reply], count: int) -> list[float]:
    failed = [reply for reply in replies if reply.status != 200]
    if failed or len(replies) != count:
        raise SystemExit(
            f"{len(failed)} of {len(replies)} requests failed, such as {failed[:1]}; nothing can be compared"
        )
    for reply in replies:
        _check_tokens(reply.body["explanations"][0]["tokens"], reply.body["usage"]["completion_tokens"])
    return [reply.seconds for reply in replies]


def _check_tokens(found: int, expected: int) -> None:
    if found != expected:
        raise SystemExit(f"an explanation of {found} tokens where all have {expected}; nothing can be compared")


def _show(given: argparse.Namespace, speed: dict[str, list[float]], alone: dict[str, list[list[float]]]) -> None:
    shown = Table(
        "what", "bare", "server", "server / bare", title=f"{given.clients} clients and one, {given.rounds} rounds"
    )
    ratios = [s / b for s, b in zip(speed["server"], speed["bare"], strict=True)]
    medians = [f"{statistics.median(speed[name]):.2f}/s" for name in ("bare", "server")]
    shown.add_row("explanations at saturation", *medians, _spread(ratios))
    for quantile in (50, 99):
        values = {name: [float(np.percentile(round_, quantile)) for round_ in rounds] for name, rounds in alone.items()}
        ratios = [s / b for s, b in zip(values["server"], values["bare"], strict=True)]
        medians = [f"{1000 * statistics.median(values[name]):.0f} ms" for name in ("bare", "server")]
        shown.add_row(f"one client, p{quantile}", *medians, _spread(ratios))
    Console(width=100).print(shown)


async def _overload(
    given: argparse.Namespace,
    server: ServingProcess,
    url: str,
    payloads: list[Any],
    rate: float,
    limits: dict[str, int],
) -> None:
    memory: list[float] = []
    watching = asyncio.create_task(_watch_memory(server, memory))
    replies = await open_loop(url, payloads, 10 * rate, given.overload_seconds)
    watching.cancel()
    # In the order they were due.
    last = max(n / (10 * rate) + reply.seconds for n, reply in enumerate(replies) if reply.status == 200)
    statuses = Counter(reply.status for reply in replies)
    waits = {reply.retry_after for reply in replies if reply.status == 503}
    seconds = [reply.seconds for reply in replies if reply.status == 200]
    p99, bound = float(np.percentile(seconds, 99)), limits["in_flight"] / rate
    third = max(1, len(memory) // 3)
    growth = statistics.median(memory[-third:]) / statistics.median(memory[third : 2 * third])
    shown = Table("what", "value", title=f"10 times the rate at saturation for {given.overload_seconds} s")
    shown.add_row("answers by status", ", ".join(f"{status}: {count}" for status, count in sorted(statuses.items())))
    shown.add_row("Retry-After of the refused", ", ".join(f"{wait} s" for wait in sorted(waits, key=str)))
    shown.add_row("rate of the accepted / rate at saturation", f"{len(seconds) / last / rate:.2f}")
    shown.add_row("p99 of the accepted / time to answer limits.in_flight pairs", f"{p99 / bound:.2f}")
    shown.add_row("memory, last third / second third", f"{growth:.3f}")
    Console(width=100).print(shown)


async def _watch_memory(server: ServingProcess, memory: list[float]) -> None:
    """The private memory of all the server's processes, in MB, every second."""
    while True:
        total = 0
        for process in server.descendants():
            try:
                total += process.memory_full_info().uss
            except psutil.Error:
                continue
        memory.append(total / MEGABYTE)
        await asyncio.sleep(1)


def _spread(ratios: list[float]) -> str:
    return f"{statistics.median(ratios):.3f} ({min(ratios):.3f}-{max(ratios):.3f})"


if __name__ == "__main__":
    main()
