"""The loop that tunes the adapter against the frozen backbone (Eq. 13 of arXiv 2406.02377).

A warm-up teaches the adapter to put single embeddings into words; then it learns to explain pairs, with validation,
early stopping, and checkpoints from which a run resumes at any number of workers. The loss of a step is the mean over
the target tokens of the whole batch, and a row's randomness depends on (seed, step, row) alone: the curve is the same
curve for any number of workers and any micro-batch. `tuning_engine.py` has the machinery below, `tuning_data.py` the
rows, `ray_jobs/tune.py` the workers.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from xrec.config import TuneConfig
from xrec.explainer.adapter import XRecAdapter, check_finite, draw_randomness
from xrec.explainer.batching import Row, check_context, collate, micro_batches, plan_epoch, plan_in_order
from xrec.explainer.loading import backbone_folder
from xrec.explainer.model import XRecModel, backbone_hash, embedding_table, load_backbone, resolve_device
from xrec.explainer.prompt import PromptBuilder
from xrec.explainer.tuning_data import TuningData, align_adapter, load_tuning_data, new_adapter
from xrec.explainer.tuning_engine import EngineState, Progress, TorchEngine, TuningEngine, load_weights
from xrec.explainer.vectors import derangement
from xrec.metric_logging import MetricLogger
from xrec.workspace import Workspace

_REMEDY = "lower tune.learning_rate, set tune.precision to float32, or check the embeddings; nothing of it was kept"
# Steps without a finite loss and gradient, one after another, after which a run ends.
_MOST_SKIPPED = 3
LOSS, SHUFFLED_LOSS = "val/nll_per_token", "val/nll_per_token/shuffled"


class TuningDiverged(ValueError):
    """Loss or gradient was not finite for several steps in a row, or in every validation."""


@dataclass(frozen=True)
class Phase:
    """A stretch of epochs over one kind of rows, with a learning-rate schedule of its own.

    Attributes:
        name: `warmup` or `train`, the prefix of its figures.
        rows: what it trains on.
        first_step: global number of its first step.
        epochs: passes over the rows.
        steps: all of its steps.
    """

    name: str
    rows: list[Row]
    first_step: int
    epochs: int
    steps: int


def phases_of(data: TuningData, config: TuneConfig) -> list[Phase]:
    """The phases that have rows and epochs, in order."""
    phases, first = [], 0
    for name, rows, epochs in (("warmup", data.warmup, config.warmup_epochs), ("train", data.train, config.epochs)):
        if rows and epochs:
            steps = epochs * math.ceil(len(rows) / config.batch_size)
            phases.append(Phase(name, rows, first, epochs, steps))
            first += steps
    return phases


def learning_rate(step: int, steps: int, rising: int, peak: float, schedule: str = "cosine") -> float:
    """Linear rise over the first `rising` steps, then half a cosine down to nearly 0 at the last of `steps`.

    Args:
        step: counts from 0.
        schedule: `constant` stays at the peak instead of going down.
    """
    if step < rising:
        return peak * (step + 1) / rising
    if schedule == "constant":
        return peak
    return peak * 0.5 * (1.0 + math.cos(math.pi * (step - rising) / max(1, steps - rising)))


class Tuner:
    """Runs the phases over an engine.

    Args:
        engine: this worker's machinery.
        data: rows and embeddings, the same on every worker.
        config: the stage's settings.
        micro_batch: rows this worker holds at once; None: its share of a step.
        log: called on rank 0 with (step, figures by name).
        save: called on every worker with the progress whenever a checkpoint is due.
    """

    def __init__(
        self,
        engine: TuningEngine,
        data: TuningData,
        config: TuneConfig,
        micro_batch: int | None = None,
        log: Callable[[int, dict[str, float]], None] | None = None,
        save: Callable[[Progress], None] | None = None,
    ):
        self.engine, self.data, self.config, self.micro_batch = engine, data, config, micro_batch
        self.log, self.save = log, save
        self.phases = phases_of(data, config)
        self.steps = sum(phase.steps for phase in self.phases)
        self._epoch: tuple[str, int, list[np.ndarray]] = ("", -1, [])

    def run(self, progress: Progress | None = None) -> Progress:
        """Train from where `progress` stands to the end, or until validation stops improving.

        Raises:
            TuningDiverged: see `_MOST_SKIPPED`; the same on every worker.
        """
        progress = progress or Progress()
        while not progress.finished:
            phase = next(p for p in self.phases if progress.step < p.first_step + p.steps)
            metrics, taken = self._train_step(phase, progress.step)
            self._report(progress.step + 1, metrics)
            progress.skipped_in_a_row = 0 if taken else progress.skipped_in_a_row + 1
            progress.skipped += not taken
            if progress.skipped_in_a_row >= _MOST_SKIPPED:
                raise self._diverged(phase, progress)
            progress.step += 1
            last = progress.step == self.steps
            due = last or progress.step % self.config.validate_every == 0
            if due and phase.name == "train" and self.data.validation:
                self._validate_and_judge(progress)
            progress.finished = last or progress.stale >= self.config.patience
            if progress.finished and progress.stale and progress.best_loss is None:
                raise TuningDiverged(f"tune: none of {progress.stale} validation losses was finite; {_REMEDY}")
            often = self.config.compute.checkpoint_every
            if self.save is not None and (due or progress.finished or (often and progress.step % often == 0)):
                self.save(progress)
        return progress

    def validate(self, shuffled: bool = False) -> float:
        """Negative log-likelihood per token of the validation rows; optionally with embeddings shuffled among nodes."""
        data, total, tokens = self.data, 0.0, 0
        rows, user, item = data.validation, data.user, data.item
        if shuffled:
            user, item = user[derangement(len(user), 0)], item[derangement(len(item), 1)]
        for step in plan_in_order([len(row) for row in rows], self.config.batch_size):
            for piece, counts in micro_batches(step, self.engine.rank, self.engine.world, self.micro_batch):
                with torch.no_grad():
                    losses = self.engine.losses(collate([rows[i] for i in piece], user, item, data.pad_id))
                total += float(losses.sum()) if counts else 0.0
            tokens += sum(rows[i].target_length for i in step)
        return self.engine.total([total])[0] / tokens

    def _train_step(self, phase: Phase, step: int) -> tuple[dict[str, float], bool]:
        """Metrics of the step, and whether it was taken: not where a loss or a gradient was not finite."""
        rows, config, data = phase.rows, self.config, self.data
        chosen = self._rows_of_step(phase, step - phase.first_step)
        tokens = sum(rows[i].target_length for i in chosen)
        summed = 0.0
        for piece, counts in micro_batches(chosen, self.engine.rank, self.engine.world, self.micro_batch):
            batch = collate([rows[i] for i in piece], data.user, data.item, data.pad_id)
            draws = draw_randomness(
                config.seed, step, piece.tolist(), config.adapter.experts, data.user.shape[1], config.adapter.dropout
            )
            loss = self.engine.losses(batch, draws).sum() * (1.0 if counts else 0.0)
            self.engine.backward(loss / tokens)
            summed += float(loss.detach())
        rate = self._learning_rate(phase, step - phase.first_step)
        loss_per_token = self.engine.total([summed])[0] / tokens
        taken = self.engine.step(rate, apply=math.isfinite(loss_per_token))
        metrics = {"nll_per_token": loss_per_token, "learning_rate": rate}
        metrics |= {} if taken else {"skipped": 1.0}
        return {f"{phase.name}/{name}": value for name, value in metrics.items()}, taken

    def _diverged(self, phase: Phase, progress: Progress) -> TuningDiverged:
        first, last = progress.step - _MOST_SKIPPED + 1, progress.step
        rows = [phase.rows[i] for i in self._rows_of_step(phase, last - phase.first_step)]
        named = ", ".join(f"(user {row.user}, item {row.item})" for row in rows[:3])
        rate = self._learning_rate(phase, last - phase.first_step)
        return TuningDiverged(
            f"tune: loss or gradient was not finite in steps {first + 1} to {last + 1} of {self.steps} (rows of the "
            f"last: {named}{', …' * (len(rows) > 3)}; learning rate {rate:.3g}); {_REMEDY}"
        )

    def _rows_of_step(self, phase: Phase, step: int) -> np.ndarray:
        epoch, position = divmod(step, phase.steps // phase.epochs)
        if self._epoch[:2] != (phase.name, epoch):
            lengths = [len(row) for row in phase.rows]
            self._epoch = (phase.name, epoch, plan_epoch(lengths, self.config.batch_size, self.config.seed, epoch))
        return self._epoch[2][position]

    def _learning_rate(self, phase: Phase, step: int) -> float:
        rising = round(self.config.warmup_share * phase.steps)
        return learning_rate(step, phase.steps, rising, self.config.learning_rate, self.config.schedule)

    def _validate_and_judge(self, progress: Progress) -> None:
        loss, shuffled = self.validate(), self.validate(shuffled=True)
        self._report(progress.step, {LOSS: loss, SHUFFLED_LOSS: shuffled})
        if not math.isfinite(loss) or (progress.best_loss is not None and not loss < progress.best_loss):
            progress.stale += 1
            return
        progress.best_step, progress.best_loss, progress.best_shuffled, progress.stale = (
            progress.step,
            loss,
            shuffled,
            0,
        )
        weights = self.engine.state().weights
        progress.best = weights if self.engine.rank == 0 else {}

    def _report(self, step: int, figures: dict[str, float]) -> None:
        if self.log is not None and self.engine.rank == 0:
            self.log(step, figures)


def final_metrics(progress: Progress, data: TuningData) -> dict[str, float]:
    """The stage's flat figures: losses of the kept adapter, steps, and rows used and dropped."""
    figures: dict[str, float] = {"steps": progress.step, "best_step": progress.best_step}
    figures["steps_skipped"] = progress.skipped
    if progress.best_loss is not None and progress.best_shuffled is not None:
        figures |= {LOSS: progress.best_loss, SHUFFLED_LOSS: progress.best_shuffled}
    used = {"train": len(data.train), "val": len(data.validation), "warmup": len(data.warmup)}
    figures |= {f"{kind}/rows": count for kind, count in used.items()}
    return figures | {f"{kind}/rows_dropped": count for kind, count in data.dropped.items()} | data.figures


def finish_adapter(adapter: XRecAdapter, state: EngineState, progress: Progress) -> XRecAdapter:
    """Give the adapter the weights of the best validation, or the last ones where nothing was validated."""
    load_weights(adapter, progress.best or state.weights)
    return adapter.eval()


def dtype_of(config: TuneConfig, device: torch.device) -> torch.dtype:
    """The backbone's type: as configured, else bfloat16 on a GPU and float32 on a CPU."""
    if config.precision == "auto":
        return torch.bfloat16 if device.type == "cuda" else torch.float32
    return torch.bfloat16 if config.precision == "bfloat16" else torch.float32


def assemble(
    workspace: Workspace,
    config: TuneConfig,
    path: str,
    backbone: Any,
    tokenizer: Any,
    table: torch.Tensor | None = None,
) -> tuple[XRecModel, TuningData]:
    """A loaded backbone with an adapter before it that is yet to be tuned, and what to train it on.

    Args:
        path: the name or folder that the backbone was loaded from.
        table: `[V, H]` float32, the backbone's input embeddings, where the backbone itself holds but a shard of them.
    """
    check_context(config.max_length, backbone.config)
    data = load_tuning_data(workspace, config, tokenizer)
    table = embedding_table(backbone) if table is None else table
    prompt_hash = PromptBuilder(tokenizer, config.prompt).hash
    adapter = new_adapter(workspace, config, data, table, backbone_hash(path, backbone.config), prompt_hash)
    if config.align != "none":
        data.figures |= align_adapter(workspace, config, adapter, data, tokenizer, table)
    check_finite(adapter.state_dict(), "the adapter before its first step")
    return XRecModel(backbone, adapter), data


def tune(
    workspace: Workspace,
    config: TuneConfig | None = None,
    device: str = "auto",
    logger: MetricLogger | None = None,
) -> tuple[XRecAdapter, dict[str, float]]:
    """Tune an adapter in this process, without Ray or checkpoints: for a notebook or a single GPU.

    Args:
        workspace: with the stages `preprocess` and `embed` finished, and `backbone` where the config names none.
        config: settings; `compute` counts but for workers and ZeRO.
        device: auto, cpu, cuda or cuda:N.
        logger: where each step's and validation's figures go.

    Returns:
        The best adapter, and the flat figures that `xrec tune` writes to `metrics.json`.
    """
    config, place = config or TuneConfig(), resolve_device(device)
    with backbone_folder(workspace, config.backbone) as path:
        backbone, tokenizer = load_backbone(path, dtype_of(config, place), place)
        model, data = assemble(workspace, config, path, backbone, tokenizer)
    model.adapter.to(place)
    engine = TorchEngine(model, config, gradient_checkpointing=config.compute.gradient_checkpointing)
    log = (lambda step, figures: logger.log(step, **figures)) if logger else None
    progress = Tuner(engine, data, config, config.compute.micro_batch, log).run()
    return finish_adapter(model.adapter, engine.state(), progress), final_metrics(progress, data)
