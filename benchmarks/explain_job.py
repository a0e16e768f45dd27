"""What does Ray Data cost? Explanations per second of the stage `explain` on one vLLM actor, against the bare engine.

    bare       `VLLMEngine.generate` in this process, asked at once for all requests, built beforehand
    job        `ray_jobs.explain.run` on a workspace of those users and items, the same engine arguments in one actor

The job's time runs from the moment when its actor begins with its first block to the moment when the last file of
results is written: starting Ray, the actor and the engine is left out; reading, looking up vectors, tokenising, filling
and draining the running batch, and writing are all in. The bare engine's time is that of the call alone, so the ratio
errs against the job. Other users, items and texts every round; the two take turns to be first. Ratios are medians of
each round's own ratio, with the lowest and highest. Needs vLLM (`make setup-vllm`).

    python -m benchmarks.explain_job [--rounds 5 --users 40 --items 10]
"""

import argparse
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from rich.console import Console
from rich.table import Table

from benchmarks.generation_contenders import engine_arguments
from benchmarks.generation_world import MAX_WORDS, Shape, Texts, save_model, set_environment
from xrec import tables
from xrec.config import ExplainConfig
from xrec.embeddings import Embeddings
from xrec.explainer.adapter import AdapterSpec, XRecAdapter
from xrec.explainer.engine import Request
from xrec.workspace import Workspace

DIM = 64
_PROVENANCE = {"model": "", "prompt_hash": "", "tokens_in": 0, "tokens_out": 0, "status": "ok", "error": None}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options = {"rounds": 5, "users": 40, "items": 10, "tokens": 48, "rows-per-block": 32}
    for name, default in options.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--compiled", action="store_true", help="vLLM with torch.compile instead of eager")
    parser.add_argument(
        "--threads",
        type=int,
        default=max(1, (psutil.cpu_count(logical=False) or 1) - 1),
        help="of the engine's worker; default: all cores but one",
    )
    given = parser.parse_args()
    set_environment(given.threads)
    with tempfile.TemporaryDirectory() as folder:
        compare(given, Path(folder))


def compare(given: argparse.Namespace, folder: Path) -> None:
    from xrec.explainer.vllm_engine import VLLMEngine

    save_model(folder / "model", Shape())
    rows, speeds, whole = given.users * given.items, {"bare": [], "job": []}, []
    with VLLMEngine(str(folder / "model"), **engine_arguments(given)) as engine:
        engine.generate(requests_of(make_workspace(folder, -1, 2, 2), settings(folder, given, 2, 2)))
        for number in range(given.rounds):
            workspace = make_workspace(folder, number, given.users, given.items)
            config = settings(folder, given, given.users, given.items)
            for name in ("bare", "job") if number % 2 else ("job", "bare"):
                if name == "bare":
                    speeds[name].append(rows / bare_seconds(engine, requests_of(workspace, config)))
                else:
                    start = time.perf_counter()
                    speeds[name].append(rows / job_seconds(workspace, config, rows))
                    whole.append(time.perf_counter() - start)
    shown = Table("what", "explanations/s", "ratio", title=f"{rows} explanations, {given.rounds} rounds")
    for name, measured in speeds.items():
        ratios = [a / b for a, b in zip(measured, speeds["bare"], strict=True)]
        ratio = f"{statistics.median(ratios):.3f} ({min(ratios):.3f}-{max(ratios):.3f})"
        shown.add_row(name, f"{statistics.median(measured):.2f}", ratio)
    console = Console(width=100)
    console.print(shown)
    console.print(f"A job with all that is left out: {statistics.median(whole):.0f} s.")


def make_workspace(folder: Path, number: int, users: int, items: int) -> Workspace:
    """As `xrec tune` leaves it, with random embeddings and adapters; the backbone lies beside it, once for all."""
    workspace, texts = Workspace(folder / f"workspace-{number}"), Texts(2000 + number)
    stage = workspace.stage("preprocess", {})
    ids = [{"user": u, "user_id": f"u{u}", "zero_shot": False} for u in range(users)]
    titles = [{"item": i, "item_id": f"i{i}", "title": texts.title(), "zero_shot": False} for i in range(users * items)]
    stage.write_table("users", tables.from_rows("users", ids))
    stage.write_table("items_index", tables.from_rows("items_index", titles))
    pairs = [{"user": k // items, "item": k, "split": "train"} for k in range(users * items)]
    stage.write_table("interactions", tables.from_rows("interactions", pairs))
    for side, count in (("user", users), ("item", users * items)):
        profiles = [{side: k, "profile": texts.profile(), **_PROVENANCE} for k in range(count)]
        stage.write_table(f"{side}_profiles", tables.from_rows(f"{side}_profiles", profiles))
    stage.finish({})
    torch.manual_seed(number)
    stage = workspace.stage("embed", {})
    Embeddings(torch.randn(3, users, DIM), torch.randn(3, users * items, DIM)).save(
        workspace.path("embed", "embeddings.safetensors")
    )
    stage.finish({})
    stage = workspace.stage("tune", {"backbone": str(folder / "model")}, inputs=["preprocess", "embed"])
    adapter = XRecAdapter(AdapterSpec(embedding_dim=DIM, hidden_size=Shape().hidden))
    adapter.save_pretrained(workspace.path("tune", "adapter"))
    stage.finish({})
    return workspace


def settings(folder: Path, given: argparse.Namespace, users: int, items: int) -> ExplainConfig:
    """Each user with `items` items that nobody else has."""
    pairs = pa.table({"user": [k // items for k in range(users * items)], "item": list(range(users * items))})
    file = folder / f"requests-{users}-{items}.parquet"
    pq.write_table(pairs, file)
    compute = {
        "rows_per_block": given.rows_per_block,
        "threads": given.threads,
        "engine_arguments": engine_arguments(given),
    }
    return ExplainConfig.model_validate(
        {
            "engine": "vllm",
            "requests": str(file),
            "max_words": max(MAX_WORDS, given.tokens),
            "max_new_tokens": given.tokens,
            "compute": compute,
        }
    )


def requests_of(workspace: Workspace, config: ExplainConfig) -> list[Request]:
    """What the job asks its engine, in the job's order."""
    from xrec.explainer.explain import Explainer
    from xrec.explainer.requests import collect_requests

    explainer = Explainer.from_workspace(workspace, config.model_copy(update={"engine": "hf"}), "cpu")
    asked = collect_requests(workspace, config).accepted
    return explainer.requests(list(zip(asked["user"].to_pylist(), asked["item"].to_pylist(), strict=True)))


def bare_seconds(engine: Any, requests: list[Request]) -> float:
    start = time.perf_counter()
    results = engine.generate(requests)
    seconds = time.perf_counter() - start
    check_lengths({len(result.token_ids) for result in results}, requests[0].sampling.max_new_tokens)
    return seconds


def job_seconds(workspace: Workspace, config: ExplainConfig, rows: int) -> float:
    """From the start of the first block, which its file's time and its rows' latency tell, to the last file."""
    from ray_jobs.explain import run

    run(workspace, config)
    starts, ends, count = [], [], 0
    for file in sorted(Path(workspace.path("explain", "predictions")).glob("*.parquet")):
        table = pq.read_table(file)
        check_lengths(set(table["tokens"].to_pylist()), config.max_new_tokens)
        ends.append(file.stat().st_mtime)
        # A row's latency is its share of the time that its block took.
        starts.append(ends[-1] - sum(table["latency"].to_pylist()))
        count += len(table)
    if count != rows:
        raise SystemExit(f"the job wrote {count} rows instead of {rows}; nothing can be compared")
    return max(ends) - min(starts)


def check_lengths(found: set[int], expected: int) -> None:
    if found != {expected}:
        raise SystemExit(f"explanations of {found} tokens where all have {expected}; nothing can be compared")


if __name__ == "__main__":
    main()
