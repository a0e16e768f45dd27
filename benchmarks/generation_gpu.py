"""NEEDS A GPU (about 30 GB): what injection and tuning cost at LLaMA2-7B shape, random weights, bfloat16, no vLLM.

    generation      `HuggingFaceEngine` with injection and with none (same prompts, same length): explanations and
                    tokens per second, and their ratio, which is the overhead of injection
    tuning          our step (adapters, injection into every layer, clipping and AdamW) as in `tuning.py`: target tokens
                    per second, all tokens per second, and model-FLOPs utilisation

A token's pass through N weights takes 2N operations forward and 2N backward: the backbone is frozen, so gradients of
weights are not computed, only those of activations. Attention's own products are counted beside (4 T H a token and
layer forward, twice that backward, half of it masked). Utilisation is of `--peak-tflops`, the device's dense bfloat16
rate. Variants take turns; medians of the rounds, with the lowest and highest.

    python -m benchmarks.generation_gpu [--rounds 5 --prompts 64 --batch-size 32 --peak-tflops 989]
"""

import argparse
import functools
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from transformers import LlamaForCausalLM

from benchmarks.generation_world import Model, Shape, make_requests, random_model, save_tokenizer, silence
from benchmarks.tuning import DIM, NODES, our_step, random_rows
from xrec.explainer.batching import plan_epoch
from xrec.explainer.generation import HuggingFaceEngine

LLAMA2_7B = Shape(hidden=4096, intermediate=11008, layers=32, heads=32, kv_heads=32, vocabulary=32000)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options = {"rounds": 5, "prompts": 64, "tokens": 48, "batch-size": 32, "tuning-batch": 8}
    options |= {"layers": LLAMA2_7B.layers, "hidden": LLAMA2_7B.hidden}
    for name, default in options.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument(
        "--peak-tflops", type=float, default=989.0, help="dense bfloat16; default: one H100 SXM or H200"
    )
    parser.add_argument("--device", default="cuda", help="`cpu` only to see that it runs, with few layers and prompts")
    given = parser.parse_args()
    if given.device == "cuda" and not torch.cuda.is_available():
        parser.error("no GPU is here; `benchmarks/generation.py` measures on a CPU")
    scale = given.hidden / LLAMA2_7B.hidden
    shape = replace(
        LLAMA2_7B,
        hidden=given.hidden,
        layers=given.layers,
        intermediate=int(LLAMA2_7B.intermediate * scale),
        heads=max(1, given.hidden // 128),
        kv_heads=max(1, given.hidden // 128),
    )
    with tempfile.TemporaryDirectory() as folder:
        tokenizer = save_tokenizer(folder, shape.vocabulary)
    with torch.device(given.device):
        torch.set_default_dtype(torch.bfloat16)
        backbone = random_model(shape, shape.vocabulary)
        torch.set_default_dtype(torch.float32)
    silence(backbone, tokenizer)
    backbone.requires_grad_(False).eval()
    console = Console(width=110)
    console.print(generation(backbone, tokenizer, shape, given))
    console.print(tuning(backbone, shape, given))


def generation(backbone: LlamaForCausalLM, tokenizer: Any, shape: Shape, given: argparse.Namespace) -> Table:
    size = {"batch_size": given.batch_size}
    engines = {
        "injection": HuggingFaceEngine(backbone, tokenizer, **size),
        "none": HuggingFaceEngine(backbone, tokenizer, "none", input_replacement=False, **size),
    }
    seconds: dict[str, list[float]] = {name: [] for name in engines}
    model = Model("", tokenizer, 0, shape.hidden)
    for number in range(-1, given.rounds):
        requests = make_requests(model, given.prompts, 1, given.tokens, "paper", number + 1)
        for name in sorted(engines, reverse=bool(number % 2)):
            took, results = timed(functools.partial(engines[name].generate, requests), given.device)
            if {len(result.token_ids) for result in results} != {given.tokens}:
                raise SystemExit(f"{name}: explanations of unequal length; nothing can be compared")
            if number >= 0:
                seconds[name].append(took)
    shown = Table("generation", "explanations/s", "tokens/s", "ratio to none", title=titled(backbone, given))
    for name, measured in seconds.items():
        speed = given.prompts / statistics.median(measured)
        ratios = [other / own for own, other in zip(measured, seconds["none"], strict=True)]
        shown.add_row(name, f"{speed:.2f}", f"{speed * given.tokens:,.0f}", spread(ratios))
    return shown


def tuning(backbone: LlamaForCausalLM, shape: Shape, given: argparse.Namespace) -> Table:
    rows = random_rows(given.tuning_batch * (given.rounds + 1), shape.vocabulary)
    steps = plan_epoch([len(row) for row in rows], given.tuning_batch, seed=0, epoch=0)
    step = our_step(backbone, rows, torch.randn(NODES, DIM), torch.randn(NODES, DIM), torch.device(given.device))
    head = shape.hidden * shape.vocabulary
    weights = sum(p.numel() for p in backbone.parameters()) - 2 * head
    targets, tokens, utilisation = [], [], []
    for number, chosen in enumerate(steps):
        took, _ = timed(functools.partial(step, chosen, number), given.device)
        if number == 0:
            continue
        lengths, wanted = [len(rows[i]) for i in chosen], [rows[i].target_length for i in chosen]
        # The head runs for the targets alone; causal attention sees half of its square.
        operations = 4 * weights * sum(lengths) + 4 * head * sum(wanted)
        operations += sum(6 * shape.layers * shape.hidden * length**2 for length in lengths)
        targets.append(sum(wanted) / took)
        tokens.append(sum(lengths) / took)
        utilisation.append(operations / took / (given.peak_tflops * 1e12))
    shown = Table("tuning", "target tokens/s", "all tokens/s", f"utilisation of {given.peak_tflops:g} TFLOP/s")
    figures = [f"{statistics.median(v):,.0f} ({min(v):,.0f}-{max(v):,.0f})" for v in (targets, tokens)]
    shown.add_row(f"{given.tuning_batch} rows a step", *figures, spread(utilisation))
    return shown


def timed(work: Callable[[], Any], device: str) -> tuple[float, Any]:
    if device == "cuda":
        torch.cuda.synchronize()
    start = time.perf_counter()
    result = work()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start, result


def titled(backbone: LlamaForCausalLM, given: argparse.Namespace) -> str:
    name = torch.cuda.get_device_name() if given.device == "cuda" else given.device
    parameters = sum(p.numel() for p in backbone.parameters())
    return f"{parameters / 1e9:.2f} B parameters, bfloat16, {name}; {given.prompts} prompts, {given.tokens} tokens each"


def spread(values: list[float]) -> str:
    return f"{statistics.median(values):.3f} ({min(values):.3f}-{max(values):.3f})"


if __name__ == "__main__":
    main()
