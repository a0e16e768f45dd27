"""Training of a baseline: phase after phase, each with early stopping, resumable at every epoch.

Files, logs and progress bars are the caller's business: it gets every epoch's figures and the states to resume from.
"""

import math
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from xrec.baselines.corpus import Batch, Rows
from xrec.baselines.model import ExplanationModel
from xrec.baselines.state import TrainingState, copied
from xrec.explainer.batching import plan_epoch, plan_in_order

CLIP = 1.0
WARM_UP_SHARE = 0.05


@dataclass
class Phase:
    """A part of training.

    Attributes:
        name: in the figures.
        train, validation: rows; without validation rows all epochs are run and the last one's weights are kept.
        losses: scalars of a batch, as `ExplanationModel.losses` gives them.
        parameters: those that are trained; all others are frozen.
        epochs: at most.
        learning_rate: Adam's at its highest; it rises over the first steps and falls to 0 over all `epochs`.
    """

    name: str
    train: Rows
    validation: Rows
    losses: Callable[[Batch], dict[str, torch.Tensor]]
    parameters: list[nn.Parameter]
    epochs: int
    learning_rate: float


class Trainer:
    """Trains a model in place.

    Args:
        model: on the device that it is to be trained on.
        phases: in order.
        tokenizer: of the texts.
        batch_size: rows a step.
        patience: epochs of a phase without a better validation loss before it ends.
        seed: the same seed gives the same weights: on a CPU, with the same number of threads, bit for bit.
    """

    def __init__(
        self,
        model: ExplanationModel,
        phases: list[Phase],
        tokenizer: Any,
        batch_size: int,
        patience: int,
        seed: int,
    ):
        self.model, self.phases, self.tokenizer = model, phases, tokenizer
        self.batch_size, self.patience, self.seed = batch_size, patience, seed
        self.device = next(model.parameters()).device

    def run(
        self,
        on_epoch: Callable[[int, dict[str, float]], None],
        on_checkpoint: Callable[[TrainingState], None],
        resume: TrainingState | None = None,
    ) -> dict[str, float]:
        """Train; ends with the weights of the last phase's best epoch.

        Args:
            on_epoch: called with the number of the epoch, over all phases from 1, and its figures.
            on_checkpoint: called at the end of every epoch, before its `on_epoch`.
            resume: a state from a run with the same arguments; the result is that of the run uninterrupted.

        Returns:
            Each phase's `<phase>/val/loss` (nats a token), `<phase>/epochs` and `<phase>/best_epoch`.

        Raises:
            ValueError: the loss is no longer a number.
        """
        state = resume or TrainingState(tensors=copied("model", self.model.state_dict()))
        self.model.load_state_dict(state.part("model"))
        with torch.random.fork_rng():
            for number in range(state.phase, len(self.phases)):
                self._run_phase(number, state, on_epoch, on_checkpoint)
        self.model.eval()
        return state.figures

    def _run_phase(self, number: int, state: TrainingState, on_epoch, on_checkpoint) -> None:
        phase = self.phases[number]
        self.model.requires_grad_(False)
        for parameter in phase.parameters:
            parameter.requires_grad_(True)
        optimizer = torch.optim.Adam(phase.parameters, lr=phase.learning_rate)
        if state.phase == number and state.epoch:
            _restore(optimizer, phase.parameters, state.part("optimizer"))
        else:
            state.phase, state.epoch, state.stale, state.best = number, 0, 0, math.inf
        while state.epoch < phase.epochs and state.stale < self.patience:
            # Seeded by the epoch: nothing of the generators needs saving to resume exactly.
            torch.manual_seed(hash_seed(self.seed, state.step))
            entry = self._train_epoch(phase, optimizer, state)
            entry |= self.validate(phase)
            self._advance(phase, state, entry)
            state.tensors = copied("best", state.part("best")) | copied("model", self.model.state_dict())
            state.tensors |= _moments(optimizer, phase.parameters)
            on_checkpoint(state)
            on_epoch(state.step, {f"{phase.name}/{k}": v for k, v in entry.items()})
        self.model.load_state_dict(state.part("best"))

    def _train_epoch(self, phase: Phase, optimizer: torch.optim.Optimizer, state: TrainingState) -> dict[str, float]:
        """One pass; the means of the losses' terms over the steps."""
        self.model.train()
        sums: Counter[str] = Counter()
        plan = plan_epoch(phase.train.lengths, self.batch_size, self.seed, state.step)
        for number, chosen in enumerate(plan, state.epoch * len(plan)):
            optimizer.param_groups[0]["lr"] = phase.learning_rate * schedule(number, phase.epochs * len(plan))
            losses = phase.losses(phase.train.batch(chosen, self.tokenizer, self.device))
            optimizer.zero_grad(set_to_none=True)
            losses["total"].backward()
            nn.utils.clip_grad_norm_(phase.parameters, CLIP)
            optimizer.step()
            sums.update({name: float(value.detach()) for name, value in losses.items()})
        means = {f"train/{name}": value / len(plan) for name, value in sums.items()}
        if not math.isfinite(means["train/total"]):
            raise ValueError(
                f"baseline, phase {phase.name}: the loss is {means['train/total']}; lower baseline.learning_rate "
                f"({phase.learning_rate:g})"
            )
        return means

    @torch.inference_mode()
    def validate(self, phase: Phase) -> dict[str, float]:
        """`val/loss`, the validation texts' mean loss in nats a token; nothing where there are none."""
        if not len(phase.validation):
            return {}
        self.model.eval()
        total, tokens = 0.0, 0
        for chosen in plan_in_order(phase.validation.lengths, self.batch_size):
            batch = phase.validation.batch(chosen, self.tokenizer, self.device)
            count = batch.tokens
            total, tokens = total + float(phase.losses(batch)["text"]) * count, tokens + count
        return {"val/loss": total / tokens}

    def _advance(self, phase: Phase, state: TrainingState, entry: dict[str, float]) -> None:
        """Take an epoch's outcome into the state."""
        state.epoch, state.step = state.epoch + 1, state.step + 1
        loss = entry.get("val/loss")
        if loss is None or loss < state.best:
            state.stale = 0
            state.best = math.inf if loss is None else loss
            state.tensors |= copied("best", self.model.state_dict())
            state.figures |= {f"{phase.name}/best_epoch": state.epoch}
            state.figures |= {f"{phase.name}/val/loss": loss} if loss is not None else {}
        else:
            state.stale += 1
        state.figures[f"{phase.name}/epochs"] = state.epoch


def schedule(step: int, steps: int) -> float:
    """The share of the learning rate at a step, from 0: up in a straight line, then down to nothing."""
    rising = max(1, round(WARM_UP_SHARE * steps))
    return min((step + 1) / rising, (steps - step) / max(1, steps - rising))


def hash_seed(seed: int, stream: int) -> int:
    """A seed for torch from a run's seed and a number."""
    return int(np.random.SeedSequence([seed, stream]).generate_state(1, np.uint64)[0] >> np.uint64(1))


def _moments(optimizer: torch.optim.Optimizer, parameters: list[nn.Parameter]) -> dict[str, torch.Tensor]:
    found = {}
    for number, parameter in enumerate(parameters):
        # A parameter that no batch has reached yet has none.
        for name, value in optimizer.state.get(parameter, {}).items():
            found[f"{number}.{name}"] = value
    return copied("optimizer", found)


def _restore(
    optimizer: torch.optim.Optimizer, parameters: list[nn.Parameter], moments: dict[str, torch.Tensor]
) -> None:
    for key, value in moments.items():
        number, _, name = key.partition(".")
        parameter = parameters[int(number)]
        # Adam keeps its count of steps on the CPU.
        optimizer.state[parameter][name] = value.clone() if name == "step" else value.clone().to(parameter.device)
