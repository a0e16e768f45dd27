"""What does tuning cost beyond the backbone itself? Tokens a second of our step, against a plain forward and backward.

    ours              adapters, injection into every layer, loss on the target tokens, clipping and AdamW; batches
                      collated and randomness drawn inside the step
    plain             forward and backward through the same frozen backbone, from input embeddings that require a
                      gradient (so that it, too, passes through every layer), loss on the same target tokens
    plain, all logits the same with the logits of every position, as a model's own `labels=` computes them

Same batches, interleaved, median over the rounds. Tokens are real ones: pads don't count. The ratio is the median of
each round's own ratio, so that whatever else the machine does falls on both alike. Processor time is the steadier
figure on a busy machine.

    python -m benchmarks.tuning [--hidden 256 --layers 6 --batch-size 8 --rounds 9]
    python -m benchmarks.tuning --backbone FOLDER       a backbone by name or folder instead of a random LLaMA
"""

import argparse
import copy
import statistics
import time
from collections.abc import Callable

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from transformers import LlamaConfig, LlamaForCausalLM

from xrec.config import TuneConfig
from xrec.explainer.adapter import AdapterSpec, XRecAdapter, draw_randomness
from xrec.explainer.batching import Batch, Row, collate, plan_epoch
from xrec.explainer.model import XRecModel, load_backbone, positions_of, token_losses
from xrec.explainer.tuning_engine import TorchEngine

NODES, DIM = 1000, 64
WARM_UP = 2


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--backbone", help="Hugging Face name or folder; default: a random LLaMA")
    for name, default in (("hidden", 256), ("layers", 6), ("vocabulary", 4096), ("batch-size", 8), ("rounds", 9)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    backbone = load_backbone(given.backbone)[0] if given.backbone else random_llama(given)
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    backbone = backbone.requires_grad_(False).eval().to(device, dtype)
    rows = random_rows(given.batch_size * (given.rounds + WARM_UP), backbone.config.vocab_size)
    steps = plan_epoch([len(row) for row in rows], given.batch_size, seed=0, epoch=0)
    user, item = torch.randn(NODES, DIM), torch.randn(NODES, DIM)
    # A copy for the plain steps, so that they run without our hooks.
    plain = copy.deepcopy(backbone)
    contenders = {
        "ours": our_step(backbone, rows, user, item, device),
        "plain": plain_step(plain, rows, user, item, device, all_logits=False),
        "plain, all logits": plain_step(plain, rows, user, item, device, all_logits=True),
    }
    times = measure(contenders, steps, device)
    parameters = sum(p.numel() for p in backbone.parameters())
    title = (
        f"{parameters / 1e6:.1f} M parameters, {given.batch_size} rows a step, {given.threads} threads, {device.type}"
    )
    show(title, times, [sum(len(rows[i]) for i in step) for step in steps[WARM_UP:]])


def random_llama(given: argparse.Namespace) -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=given.vocabulary,
        hidden_size=given.hidden,
        intermediate_size=given.hidden * 8 // 3,
        num_hidden_layers=given.layers,
        num_attention_heads=max(1, given.hidden // 32),
        num_key_value_heads=max(1, given.hidden // 64),
    )
    return LlamaForCausalLM(config)


def random_rows(count: int, vocabulary: int) -> list[Row]:
    """Rows as long as the published Yelp texts make them: prompts of 150 to 300 tokens, targets of 30 to 60."""
    generator, rows = np.random.default_rng(0), []
    for _ in range(count):
        prompt, target = int(generator.integers(150, 300)), int(generator.integers(30, 60))
        ids = generator.integers(3, vocabulary, prompt + target).astype(np.int32)
        user, item = generator.integers(0, NODES, 2).tolist()
        rows.append(Row(user, item, ids, target, (20,), (25,)))
    return rows


def our_step(backbone, rows: list[Row], user, item, device: torch.device) -> Callable[[np.ndarray, int], float]:
    spec = AdapterSpec(embedding_dim=DIM, hidden_size=backbone.config.hidden_size)
    engine = TorchEngine(XRecModel(backbone, XRecAdapter(spec).to(device)), TuneConfig())

    def step(chosen: np.ndarray, number: int) -> float:
        tokens = sum(rows[i].target_length for i in chosen)
        draws = draw_randomness(0, number, chosen.tolist(), spec.experts, DIM, spec.dropout)
        loss = engine.losses(collate([rows[i] for i in chosen], user, item, 0), draws).sum()
        engine.backward(loss / tokens)
        engine.step(1e-3)
        return float(loss.detach()) / tokens

    return step


def plain_step(backbone, rows, user, item, device, all_logits: bool) -> Callable[[np.ndarray, int], float]:
    def step(chosen: np.ndarray, number: int) -> float:
        batch: Batch = collate([rows[i] for i in chosen], user, item, 0).to(device)
        longest = max(rows[i].target_length for i in chosen)
        tokens = sum(rows[i].target_length for i in chosen)
        embeddings = backbone.get_input_embeddings()(batch.input_ids).detach().requires_grad_()
        logits = backbone(
            inputs_embeds=embeddings,
            attention_mask=batch.attention_mask,
            position_ids=positions_of(batch.attention_mask),
            logits_to_keep=0 if all_logits else longest + 1,
            use_cache=False,
        ).logits
        labels = batch.labels[:, -(logits.shape[1] - 1) :]
        loss = token_losses(logits[:, :-1], labels).sum()
        (loss / tokens).backward()
        return float(loss.detach()) / tokens

    return step


def measure(contenders, steps, device: torch.device) -> dict[str, list[tuple[float, float]]]:
    """(wall, processor) seconds of each contender in each round after the warm-up, in turns."""
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in contenders}
    for number, chosen in enumerate(steps):
        # The order turns with the rounds: none always runs on a cache that another has just warmed.
        names = list(contenders)
        for name in names[number % len(names) :] + names[: number % len(names)]:
            start = time.perf_counter(), time.process_time()
            contenders[name](chosen, number)
            if device.type == "cuda":
                torch.cuda.synchronize()
            if number >= WARM_UP:
                times[name].append((time.perf_counter() - start[0], time.process_time() - start[1]))
    return times


def show(title: str, times: dict[str, list[tuple[float, float]]], tokens: list[int]) -> None:
    table = Table(
        "step", "tokens/s", "tokens per processor second", "ratio to plain", "the same, processor", title=title
    )
    for name, measured in times.items():
        speeds = [[count / seconds[k] for count, seconds in zip(tokens, measured, strict=True)] for k in (0, 1)]
        ratios = [
            [plain[k] / seconds[k] for plain, seconds in zip(times["plain"], measured, strict=True)] for k in (0, 1)
        ]
        figures = [f"{statistics.median(v):,.0f}" for v in speeds] + [f"{statistics.median(v):.3f}" for v in ratios]
        table.add_row(name, *figures)
    Console(width=110).print(table)


if __name__ == "__main__":
    main()
