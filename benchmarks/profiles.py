"""How fast texts are written through an endpoint: beside its rate limit, Ray Data's HTTP processor, and more actors.

A local server answers after 200 ms. Rates are the server's own, from its first request to its last, so that starting
workers does not count. Every figure is a ratio within this run, the median of several repetitions.

    python -m benchmarks.profiles [--repetitions 3] [--rows 1200]
"""

import argparse
import os
import statistics
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa
import ray
from rich.console import Console
from rich.table import Table

from ray_jobs.profile_actors import write_blocks
from ray_jobs.runtime import start_ray
from xrec.config import ProfileConfig, WritingPrompts
from xrec.profiles import parts
from xrec.profiles.prompts import Prompts
from xrec.workspace import Workspace

if TYPE_CHECKING:
    from tests.chat_server import ServerProcess

ROOT = Path(__file__).resolve().parents[1]
LATENCY = 0.2
LIMIT_PER_MINUTE = 6000
SATURATED_AT = 32
# A limiter that has been idle lets a second's worth through at once; what counts is the rate after that.
_BURST = 2.0


def requests(rows: int, size: int) -> list[pa.Table]:
    """Explanations to write, each from a review of its own."""
    table = pa.table(
        {
            "user": pa.array(range(rows), pa.int32()),
            "item": pa.array([0] * rows, pa.int32()),
            "split": ["train"] * rows,
            "feature": pa.nulls(rows, pa.string()),
            "record": [f'{{"review":"Visit {row}: good noodles, sunny terrace."}}' for row in range(rows)],
        }
    )
    return [table.slice(start, size) for start in range(0, rows, size)]


def rate(server: "ServerProcess", skip: float = 0.0) -> float:
    """Requests a second, from the first to the last; the first `skip` seconds left out."""
    times = sorted(at for at, *_ in server.get("log"))
    times = [at for at in times if at >= times[0] + skip]
    return (len(times) - 1) / (times[-1] - times[0])


def ours(server: "ServerProcess", rows: int, skip: float = 0.0, **compute) -> float:
    server.post("reset")
    settings = {"base_url": server.url, "rows_per_block": 32, "request_timeout": 60.0} | compute
    config = ProfileConfig.model_validate({"backend": "openai", "model": "m", "compute": settings})
    with tempfile.TemporaryDirectory() as folder:
        workspace = Workspace(folder)
        index = parts.write_requests(workspace, "explanation", requests(rows, settings["rows_per_block"]))
        work: dict[int, list[int] | None] = dict.fromkeys(range(index.blocks))
        results = list(write_blocks(workspace, config, "explanation", work, None, 0.0))
        assert sum(result["rows"] for result in results) == rows
        assert not sum(result["failed"] for result in results)
    return rate(server, skip)


def built_in(server: "ServerProcess", rows: int, actors: int) -> float:
    from ray.data.llm import HttpRequestProcessorConfig, build_processor

    server.post("reset")
    prompts = Prompts(WritingPrompts(), 50)
    records = [record for block in requests(rows, rows) for record in block["record"].to_pylist()]
    messages = [prompts.messages("explanation", record) for record in records]
    config = HttpRequestProcessorConfig(url=f"{server.url}/chat/completions", concurrency=actors, batch_size=32)
    processor = build_processor(
        config,
        preprocess=lambda row: {"payload": {"model": "m", "messages": list(row["messages"])}},
        postprocess=lambda row: {"answer": str(row["http_response"])},
    )
    data = ray.data.from_items([{"messages": m} for m in messages], override_num_blocks=max(1, rows // 32))
    assert processor(data).count() == rows
    return rate(server)


def median(values: list[float]) -> str:
    return f"{statistics.median(values):.2f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--rows", type=int, default=1200, help="rows of one measurement")
    given = parser.parse_args()
    sys.path.insert(0, str(ROOT))
    os.environ["PYTHONPATH"] = str(ROOT)
    from tests.chat_server import server_process

    start_ray(12)
    ray.data.DataContext.get_current().enable_progress_bars = False
    table = Table(title=f"Texts through an endpoint that answers after {LATENCY * 1000:.0f} ms")
    for heading in ("what", "rows a second", "ratio", "to"):
        table.add_column(heading)

    def add(what: str, rates: list[float], ratios: list[float], to: str) -> None:
        table.add_row(what, f"{statistics.median(rates):.1f}", median(ratios), to)

    repeat = range(given.repetitions)
    with server_process("--latency", str(LATENCY)) as server:
        wide = {"actors": (2, 2), "concurrency": 256}
        limited = [ours(server, given.rows, _BURST, requests_per_minute=LIMIT_PER_MINUTE, **wide) for _ in repeat]
        add(
            f"limited to {LIMIT_PER_MINUTE:,} a minute, 2 actors",
            limited,
            [r * 60 / LIMIT_PER_MINUTE for r in limited],
            "the limit",
        )
        free = [ours(server, given.rows, **wide) for _ in repeat]
        plain = [built_in(server, max(64, given.rows // 16), actors=2) for _ in repeat]
        add("Ray Data's HTTP processor, 2 actors", plain, [1.0], "itself")
        add("no limit, 2 actors", free, [a / b for a, b in zip(free, plain, strict=True)], "the HTTP processor")
    with server_process("--latency", str(LATENCY), "--max-concurrency", str(SATURATED_AT)) as server:
        one: list[float] = []
        for actors in (1, 2, 4, 6):
            rates = [ours(server, given.rows // 8 * actors, actors=(actors, actors), concurrency=8) for _ in repeat]
            one = one or rates
            add(
                f"{actors} actors of 8 requests each; the server saturates at {SATURATED_AT}",
                rates,
                [a / b for a, b in zip(rates, one, strict=True)],
                "one actor",
            )
    Console(width=140).print(table)


if __name__ == "__main__":
    main()
