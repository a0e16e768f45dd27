"""How fast are explanations generated? The vLLM engine with injection, beside what it could at best and at worst be.

    vLLM, injection          `VLLMEngine.generate`
    vLLM, plain              the unmodified model through the same front end (AsyncLLM): no vectors, ordinary tokens at
                             the reserved positions, so prompts are as long
    vLLM, plain, offline     the same through vLLM's own `LLM.generate`
    Hugging Face, batched    `HuggingFaceEngine.generate`
    one at a time            a prompt pass that injects, then transformers' own `generate()`, for one prompt after
                             another, as published systems do it; for a part of the prompts, of lengths spread alike

and, for some items of each of a few users: the user-first prompt and the paper's, with prefix caching and without.

The same model (SmolLM2, any other pretrained one, or a random LLaMA of any shape), the same ragged prompts (new ones
every round, so that none is in a cache from before) and as many tokens generated for each. All engines are loaded at
once, at rest while another runs, and take turns. Processor seconds are those of this process and of the engine's own;
on a CPU vLLM's core spins while its workers compute, which counts. Ratios are medians of each round's own ratio, with
the lowest and highest; above 1 is faster, or cheaper. Needs vLLM (`make setup-vllm`).

    python -m benchmarks.generation [--rounds 5 --prompts 64 --tokens 48] [--model smollm2|NAME|FOLDER]
    python -m benchmarks.generation --random [--hidden 512 --layers 6 --vocabulary 8192]
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass

import psutil
from rich.console import Console
from rich.table import Table

from benchmarks.generation_contenders import Contender, hugging_face, one_at_a_time, ours, plain, plain_offline
from benchmarks.generation_world import Model, Shape, default_model, every, make_requests, open_model, set_environment
from xrec.explainer.engine import Request


@dataclass
class Turn:
    """What one round of one contender took."""

    rows: int
    wall: float
    spent: dict[str, float]
    cached: float | None

    @property
    def processor(self) -> float:
        return sum(self.spent.values())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    shape = Shape()
    options = {"rounds": 5, "prompts": 64, "tokens": 48, "users": 6, "items": 10, "batch-size": 32}
    options |= {"hidden": shape.hidden, "layers": shape.layers, "vocabulary": shape.vocabulary}
    for name, default in options.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--alone", type=float, default=0.25, help="share of the prompts that are run one at a time")
    parser.add_argument("--compiled", action="store_true", help="vLLM with torch.compile instead of eager")
    parser.add_argument(
        "--threads",
        type=int,
        default=max(1, (psutil.cpu_count(logical=False) or 1) - 1),
        help="of every variant; default: all cores but one, which is vLLM's front end's",
    )
    which = parser.add_mutually_exclusive_group()
    which.add_argument(
        "--model",
        default=default_model(),
        help="smollm2, a Hugging Face name or folder, or a GGUF file; default: smollm2 where its package is installed",
    )
    which.add_argument("--random", action="store_true", help="a random LLaMA of the shape that the options say")
    parser.add_argument("--only", choices=("engines", "orders"), help="one of the two tables")
    given = parser.parse_args()
    set_environment(given.threads)
    with tempfile.TemporaryDirectory() as folder:
        compare(given, folder)


def compare(given: argparse.Namespace, folder: str) -> None:
    shape = Shape(
        given.hidden,
        given.hidden * 11 // 4,
        given.layers,
        given.hidden // 64,
        given.hidden // 64,
        given.vocabulary,
    )
    model = open_model(None if given.random else given.model, shape, folder)
    tokenizer, parameters = model.tokenizer, model.parameters
    engines: dict[str, Contender] = {}
    if given.only != "orders":
        engines = {
            "vLLM, injection": ours(folder, given),
            "vLLM, plain": plain(folder, tokenizer, given),
            "vLLM, plain, offline": plain_offline(folder, tokenizer, given),
            f"Hugging Face, batches of {given.batch_size}": hugging_face(folder, given),
            "one at a time": one_at_a_time(folder, given),
        }
    orders: dict[str, Contender] = {}
    if given.only != "engines":
        cached = engines["vLLM, injection"] if engines else ours(folder, given)
        uncached = ours(folder, given, enable_prefix_caching=False)
        for name, contender in (("prefix caching", cached), ("no prefix caching", uncached)):
            for order in ("user_first", "paper"):
                orders[f"{order}, {name}"] = Contender(
                    contender.run, contender.processes, order, engine=contender.engine
                )
    everyone = [*engines.values(), *orders.values()]
    resting = rest(everyone)
    name = "random LLaMA" if given.random or given.model is None else given.model
    setting = (
        f"{name}, {parameters / 1e6:.1f} M parameters, float32, {given.threads} threads, {given.tokens} tokens each"
    )
    setting += ", vLLM compiled" if given.compiled else ", vLLM eager"
    console = Console(width=140)
    for contenders, users, items, base in (
        (engines, given.prompts, 1, "vLLM, plain"),
        (orders, given.users, given.items, "paper, prefix caching"),
    ):
        if contenders:
            turns, lengths = measure(contenders, model, users, items, given)
            lengths = sorted(lengths)
            title = f"{setting}; {users * items} prompts of {lengths[0]} to {lengths[-1]} tokens, "
            title += f"{users} users x {items} items" if items > 1 else f"median {statistics.median(lengths):.0f}"
            console.print(table(f"{title}; {given.rounds} rounds", turns, base, cache=items > 1))
    console.print(f"All engines at rest: {resting:.1%} of one core.")
    for engine in {id(c.engine): c.engine for c in everyone if c.engine is not None}.values():
        engine.close()


def measure(
    contenders: dict[str, Contender], model: Model, users: int, items: int, given: argparse.Namespace
) -> tuple[dict[str, list[Turn]], list[int]]:
    """Each contender's turns, round by round, and the prompts' lengths. A round of few prompts comes before them."""
    turns: dict[str, list[Turn]] = {name: [] for name in contenders}
    names, lengths = list(contenders), []
    for number in range(-1, given.rounds):
        # Other texts in the one table than in the other, since both ask the same engine.
        seed = 1000 * items + number + 1
        asked = max(1, 4 // items) if number < 0 else users
        for name in names[number % len(names) :] + names[: number % len(names)]:
            contender = contenders[name]
            requests = make_requests(model, asked, items, given.tokens, contender.order, seed)
            lengths += [len(r.token_ids) for r in requests]
            if contender.share < 1:
                requests = every(requests, max(1, round(len(requests) * contender.share)))
            turn = take_turn(name, contender, requests, given.tokens)
            if number >= 0:
                turns[name].append(turn)
    return turns, lengths


def take_turn(name: str, contender: Contender, requests: list[Request], tokens: int) -> Turn:
    seen = counters(contender)
    before, start = processor_seconds(contender.processes), time.perf_counter()
    generated = contender.run(requests)
    wall, after = time.perf_counter() - start, processor_seconds(contender.processes)
    spent = {part: after[part] - before[part] for part in after}
    wrong = {len(row) for row in generated} - {tokens}
    if wrong or len(generated) != len(requests):
        raise SystemExit(f"{name}: rows of {wrong} tokens where all have {tokens}; nothing can be compared")
    asked, cached = (now - then for now, then in zip(counters(contender), seen, strict=True))
    return Turn(len(requests), wall, spent, cached / asked if asked else None)


def counters(contender: Contender) -> tuple[int, int]:
    """Prompt tokens that the engine has seen, and those that it took from its cache."""
    return getattr(contender.engine, "prompt_tokens", 0), getattr(contender.engine, "cached_tokens", 0)


def processor_seconds(processes: Sequence[psutil.Process]) -> dict[str, float]:
    """Of this process, and of an engine's own: its core, which schedules, and its workers, which run the model."""
    parts = {"here": 0.0, "core": 0.0, "workers": 0.0}
    for process in (psutil.Process(), *processes):
        times, name = process.cpu_times(), process.name()
        part = "here" if process.pid == psutil.Process().pid else "workers" if "Worker" in name else "core"
        parts[part] += times.user + times.system
    return parts


def rest(contenders: Sequence[Contender], seconds: float = 3.0) -> float:
    """The share of one core that all engines use while nobody asks them for anything."""
    processes = list({p.pid: p for c in contenders for p in c.processes}.values())
    time.sleep(seconds)
    spent = sum(processor_seconds(processes).values())
    time.sleep(seconds)
    return (sum(processor_seconds(processes).values()) - spent) / seconds


def table(title: str, turns: dict[str, list[Turn]], base: str, cache: bool) -> Table:
    headings = ["", "explanations/s", "ratio", "processor s for 100:\nhere + core + workers", "ratio of\nprocessor s"]
    shown = Table(*headings, *["prompt tokens\nfrom the cache"] * cache, title=f"{title}; ratios to {base}")
    for name, measured in turns.items():
        speed = statistics.median(turn.rows / turn.wall for turn in measured)
        parts = [
            f"{100 * statistics.median(t.spent[part] / t.rows for t in measured):.1f}" for part in measured[0].spent
        ]
        cells = [name, f"{speed:.2f}", ratio(measured, turns[base], "wall"), " + ".join(parts)]
        cells.append(ratio(measured, turns[base], "processor"))
        if cache:
            cells.append(f"{statistics.median(turn.cached or 0 for turn in measured):.1%}")
        shown.add_row(*cells)
    return shown


def ratio(measured: list[Turn], base: list[Turn], seconds: str) -> str:
    ratios = [
        (turn.rows / getattr(turn, seconds)) / (other.rows / getattr(other, seconds))
        for turn, other in zip(measured, base, strict=True)
    ]
    return f"{statistics.median(ratios):.3f} ({min(ratios):.3f}-{max(ratios):.3f})"


if __name__ == "__main__":
    main()
