"""What the tuning loop asks of the machinery below it, the plain single-process PyTorch answer, and the state on disk.

The state is world-size independent: full float32 tensors of the adapter alone, as safetensors and JSON. The DeepSpeed
engine is `ray_jobs/deepspeed_engine.py`; the loop is `tuning.py`.
"""

import json
import math
import os
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors.torch import load_file, save_file
from transformers.modeling_layers import GradientCheckpointingLayer

from xrec.config import TuneConfig
from xrec.explainer.adapter import AdapterRandomness, AdapterSpec, XRecAdapter, check_finite
from xrec.explainer.batching import Batch
from xrec.explainer.model import XRecModel

Tensors = dict[str, torch.Tensor]
MOMENTS = ("exp_avg", "exp_avg_sq")
_FILES = {"weights": "adapter.safetensors", "moments": "optimizer.safetensors", "best": "best.safetensors"}
_STATE = "state.json"


@dataclass
class EngineState:
    """Everything that the optimizer's next step depends on.

    Attributes:
        weights: float32 masters of the adapter's parameters, by the adapter's own names.
        moments: AdamW's, as `<parameter>//exp_avg` and `<parameter>//exp_avg_sq`; empty before the first step.
        steps: optimizer steps taken.
    """

    weights: Tensors
    moments: Tensors = field(default_factory=dict)
    steps: int = 0


@dataclass
class Progress:
    """Where a run stands; with the engine's state, all that a resumed run needs.

    The position in the data and all randomness follow from `step` and the config's seed.

    Attributes:
        step: optimizer steps taken.
        best_step: the step at which the validation loss was lowest; 0 before the first validation.
        best_loss, best_shuffled: that loss, natural log per token, and with embeddings shuffled among nodes.
        stale: validations since then.
        skipped, skipped_in_a_row: steps that were not taken because a loss or gradient was not finite.
        finished: whether the run has ended, by its length or early.
        best: the adapter's weights at that step; held by rank 0 alone.
    """

    step: int = 0
    best_step: int = 0
    best_loss: float | None = None
    best_shuffled: float | None = None
    stale: int = 0
    skipped: int = 0
    skipped_in_a_row: int = 0
    finished: bool = False
    best: Tensors = field(default_factory=dict)


class TuningEngine(Protocol):
    """One worker's part of the machinery. All methods but `backward` must be called by every worker alike."""

    rank: int
    world: int

    def losses(self, batch: Batch, randomness: AdapterRandomness | None = None) -> torch.Tensor:
        """`[B]` summed negative log-likelihoods, with gradients where those are enabled."""
        ...

    def backward(self, loss: torch.Tensor) -> None:
        """Add the gradients of a scalar; the step applies their sum over pieces and workers."""
        ...

    def step(self, learning_rate: float, apply: bool = True) -> bool:
        """Clip, update unless a gradient is not finite, forget the gradients.

        Args:
            learning_rate: of this step.
            apply: False leaves the weights as they are, because the loss was not finite.

        Returns:
            Whether the weights were updated; the same on every worker.
        """
        ...

    def total(self, values: list[float]) -> list[float]:
        """Each value summed over the workers."""
        ...

    def state(self) -> EngineState:
        """A copy of the state, complete on rank 0."""
        ...


class TorchEngine:
    """One process, one device, no communication.

    Args:
        model: on its device; the backbone's parameters are frozen.
        config: optimizer settings.
        state: of an earlier run, to continue it.
        gradient_checkpointing: recompute activations in the backward pass instead of keeping them.
    """

    rank, world = 0, 1

    def __init__(
        self,
        model: XRecModel,
        config: TuneConfig,
        state: EngineState | None = None,
        gradient_checkpointing: bool = False,
    ):
        self.model, self.clip, self.steps = model, config.clip, state.steps if state else 0
        if gradient_checkpointing:
            checkpoint_activations(model)
        self.parameters = dict(model.adapter.trainable_parameters())
        if state:
            load_weights(model.adapter, state.weights)
        self.optimizer = torch.optim.AdamW(
            self.parameters.values(), lr=config.learning_rate, weight_decay=config.weight_decay
        )
        if state and state.moments:
            for name, parameter in self.parameters.items():
                moments = {m: state.moments[f"{name}//{m}"].to(parameter, copy=True) for m in MOMENTS}
                self.optimizer.state[parameter] = {"step": torch.tensor(float(state.steps)), **moments}

    def losses(self, batch: Batch, randomness: AdapterRandomness | None = None) -> torch.Tensor:
        device = self.model.injected.device
        randomness = randomness.to(device) if randomness else None
        return self.model(**batch.to(device).tensors(), randomness=randomness, reduction="none")

    def backward(self, loss: torch.Tensor) -> None:
        loss.backward()

    def step(self, learning_rate: float, apply: bool = True) -> bool:
        norm = float(torch.nn.utils.clip_grad_norm_(self.parameters.values(), self.clip))
        bad = self.model.take_bad_gradients()
        applied = apply and not bad and math.isfinite(norm)
        if applied:
            for group in self.optimizer.param_groups:
                group["lr"] = learning_rate
            self.optimizer.step()
            self.steps += 1
        self.optimizer.zero_grad()
        return applied

    def total(self, values: list[float]) -> list[float]:
        return values

    def state(self) -> EngineState:
        weights = {name: _copy(p) for name, p in self.parameters.items()}
        moments = {
            f"{name}//{m}": _copy(self.optimizer.state[p][m])
            for name, p in self.parameters.items()
            for m in MOMENTS
            if p in self.optimizer.state
        }
        return EngineState(weights, moments, self.steps)


def checkpoint_activations(model: XRecModel) -> None:
    """Recompute each layer's activations in the backward pass; the backbone's dropout stays off.

    Raises:
        ValueError: the backbone does not support it.
    """
    if not model.backbone.supports_gradient_checkpointing:
        raise ValueError(
            f"tune.compute.gradient_checkpointing: {type(model.backbone).__name__} does not support it; set it to false"
        )
    model.backbone.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    # A layer checkpoints only in training mode, which its dropouts must not enter: the backbone is frozen.
    for module in model.backbone.modules():
        if isinstance(module, GradientCheckpointingLayer):
            module.training = True


@torch.no_grad()
def load_weights(adapter: XRecAdapter, weights: Tensors) -> None:
    """Copy float32 masters into the adapter's parameters.

    Raises:
        ValueError: a parameter is absent or has another shape.
    """
    for name, parameter in adapter.trainable_parameters():
        if name not in weights or weights[name].shape != parameter.shape:
            found = tuple(weights[name].shape) if name in weights else None
            raise ValueError(
                f"adapter weight {name!r} is {found}, not {tuple(parameter.shape)}; pass --force to restart"
            )
        parameter.copy_(weights[name])


def save_checkpoint(folder: str | os.PathLike, state: EngineState, progress: Progress, spec: AdapterSpec) -> None:
    """Write a run's state into a folder: three safetensors files and `state.json`."""
    tensors = {"weights": state.weights, "moments": state.moments, "best": progress.best}
    for kind, named in tensors.items():
        check_finite(named, f"the tuning checkpoint of step {progress.step} ({kind})")
    for kind, file in _FILES.items():
        save_file({n: t.detach().float().cpu().contiguous() for n, t in tensors[kind].items()}, Path(folder) / file)
    figures = {k: v for k, v in vars(progress).items() if k != "best"}
    text = json.dumps({"progress": figures, "steps": state.steps, "spec": asdict(spec)}, indent=1, sort_keys=True)
    (Path(folder) / _STATE).write_text(text)


def load_checkpoint(folder: str | os.PathLike) -> tuple[EngineState, Progress, AdapterSpec]:
    """Read what `save_checkpoint` wrote.

    Raises:
        ValueError: the folder is not such a checkpoint.
    """
    if not (Path(folder) / _STATE).is_file():
        raise ValueError(f"{folder}: no {_STATE}, so this is no tuning checkpoint; pass --force to start again")
    values: dict[str, Any] = json.loads((Path(folder) / _STATE).read_text())
    tensors = {kind: load_file(Path(folder) / file) for kind, file in _FILES.items()}
    for kind, named in tensors.items():
        check_finite(named, f"{folder}/{_FILES[kind]}")
    state = EngineState(tensors["weights"], tensors["moments"], values["steps"])
    return state, Progress(**values["progress"], best=tensors["best"]), AdapterSpec(**values["spec"])


def _copy(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.detach().float().cpu().clone()
