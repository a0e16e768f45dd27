"""The tuning loop's machinery on DeepSpeed: ZeRO 0 to 3, CPU with gloo and GPU with NCCL by the same code.

DeepSpeed shards the frozen backbone (stage 3), reduces gradients, clips and steps. Its own checkpoints are not used:
they would hold the frozen model, load by pickle, and fit one number of workers only. The state here is the adapter's
alone, in full tensors. `DS_ACCELERATOR=cpu` must be in the environment before this module is imported without a GPU.
"""

from contextlib import contextmanager
from typing import Any

import deepspeed
import torch
import torch.distributed as dist
from deepspeed.utils import (
    safe_get_full_fp32_param,
    safe_get_full_optimizer_state,
    safe_set_full_fp32_param,
    safe_set_full_optimizer_state,
)
from transformers.integrations.deepspeed import HfDeepSpeedConfig

from xrec.config import TuneConfig
from xrec.explainer.adapter import AdapterRandomness
from xrec.explainer.batching import Batch
from xrec.explainer.model import XRecModel, embedding_table, load_backbone
from xrec.explainer.tuning_engine import MOMENTS, EngineState, checkpoint_activations, load_weights

_NEVER = 10**9


def deepspeed_config(config: TuneConfig, dtype: torch.dtype) -> dict[str, Any]:
    """DeepSpeed's settings for a tuning run; `compute.deepspeed` is merged over them, section by section."""
    settings: dict[str, Any] = {
        # The loop cuts steps into pieces itself: a step's last piece may be smaller, and losses come as sums.
        "managed_gradient_accumulation": False,
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "gradient_clipping": config.clip,
        "zero_optimization": {"stage": config.compute.zero_stage, "overlap_comm": False},
        "bf16": {"enabled": dtype == torch.bfloat16},
        "steps_per_print": _NEVER,
    }
    if dtype == torch.bfloat16:
        # Stage 0 in bfloat16 keeps its float32 masters where no other world size could take them up; stage 1 computes
        # the same and shards nothing but the adapter's moments.
        settings["zero_optimization"]["stage"] = max(1, config.compute.zero_stage)
        settings["data_types"] = {"grad_accum_dtype": "fp32"}
    for name, value in config.compute.deepspeed.items():
        settings[name] = settings[name] | value if isinstance(settings.get(name), dict) else value
    return settings


def start_processes(gpu: bool) -> None:
    """Let DeepSpeed use this process group, or make one from the environment (`RANK`, `WORLD_SIZE`, …)."""
    if not gpu:
        # Otherwise the first use compiles a shared-memory extension: minutes, and a small adapter gains nothing by it.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False  # pyright: ignore
    deepspeed.init_distributed(dist_backend="nccl" if gpu else "gloo", verbose=False)


def load_frozen_backbone(
    name_or_path: str, config: TuneConfig, dtype: torch.dtype, device: torch.device
) -> tuple[Any, Any]:
    """Load a backbone and tokenizer; under ZeRO-3 each worker keeps its shard alone, from the first tensor on.

    Raises:
        ValueError: as `load_backbone`.
    """
    settings = deepspeed_config(config, dtype)
    if settings["zero_optimization"]["stage"] < 3:
        return load_backbone(name_or_path, dtype, device)
    with _sharding_at_load(settings):
        return load_backbone(name_or_path, dtype)


@contextmanager
def _sharding_at_load(settings: dict[str, Any]):
    # transformers shards at load for as long as an object of this class is alive.
    alive = HfDeepSpeedConfig(settings)
    yield alive


def input_embeddings(backbone: Any) -> torch.Tensor:
    """`[V, H]` float32 on the CPU, gathered from the workers' shards where there are any; every worker must call it."""
    weight = backbone.get_input_embeddings().weight
    if not hasattr(weight, "ds_id"):
        return embedding_table(backbone)
    with deepspeed.zero.GatheredParameters([weight]):
        return embedding_table(backbone)


class DeepSpeedEngine:
    """One worker of a tuning run: see `TuningEngine` for what each method means.

    Args:
        model: with a backbone from `load_frozen_backbone` and the same adapter on every worker.
        config: the stage's settings.
        dtype: of the backbone and of computation; the adapter's masters are float32.
        state: of an earlier run at any number of workers, to continue it.
    """

    def __init__(self, model: XRecModel, config: TuneConfig, dtype: torch.dtype, state: EngineState | None = None):
        self.rank, self.world = dist.get_rank(), dist.get_world_size()
        if config.compute.gradient_checkpointing:
            checkpoint_activations(model)
        if state:
            # Before DeepSpeed makes its masters and shards from them.
            load_weights(model.adapter, state.weights)
        settings = deepspeed_config(config, dtype)
        parameters = [parameter for _, parameter in model.adapter.trainable_parameters()]
        optimizer = torch.optim.AdamW(parameters, lr=config.learning_rate, weight_decay=config.weight_decay)
        self.engine: Any = deepspeed.initialize(model=model, optimizer=optimizer, config=settings)[0]
        if settings["zero_optimization"]["stage"] == 3:
            # Before this the model could not run, and its constructor left the check to us.
            self.engine.module.injected.check_injection()
        self.steps = state.steps if state else 0
        if state and state.moments:
            self._restore(state)

    def losses(self, batch: Batch, randomness: AdapterRandomness | None = None) -> torch.Tensor:
        device = self.engine.device
        randomness = randomness.to(device) if randomness else None
        return self.engine(**batch.to(device).tensors(), randomness=randomness, reduction="none")

    def backward(self, loss: torch.Tensor) -> None:
        # DeepSpeed averages gradients over the workers; the loop wants their sum.
        self.engine.backward(loss * self.world)

    def step(self, learning_rate: float, apply: bool = True) -> bool:
        bad = self.total([float(self.engine.module.take_bad_gradients())])[0]
        applied = apply and not bad
        # DeepSpeed has no way to drop gradients that holds at every stage; at rate 0 the weights stay what they are.
        for group in self.engine.optimizer.param_groups:
            group["lr"] = learning_rate if applied else 0.0
        self.engine.step()
        self.steps += 1
        return applied

    def total(self, values: list[float]) -> list[float]:
        summed = torch.tensor(values, dtype=torch.float64, device=self.engine.device)
        dist.all_reduce(summed)
        return summed.tolist()

    def state(self) -> EngineState:
        weights, moments = {}, {}
        for name, parameter in self._parameters():
            weights[name] = _copy(self._master(parameter))
            for moment in MOMENTS:
                if self.steps:
                    moments[f"{name}//{moment}"] = _copy(self._moment(parameter, moment))
        return EngineState(weights, moments, self.steps)

    def frozen_share(self) -> float:
        """The part of the backbone's parameters that this worker holds, by count: 1 but under ZeRO-3."""
        parameters = list(self.engine.module.backbone.parameters())
        held = sum(p.ds_tensor.numel() if hasattr(p, "ds_tensor") else p.numel() for p in parameters)
        return held / sum(getattr(p, "ds_numel", p.numel()) for p in parameters)

    def close(self) -> None:
        """Take DeepSpeed's hooks and buffers off the model."""
        self.engine.destroy()

    def _parameters(self) -> list[tuple[str, torch.nn.Parameter]]:
        return self.engine.module.adapter.trainable_parameters()

    @property
    def _wrapped(self) -> bool:
        """Whether DeepSpeed holds masters and moments itself; at stage 0 the plain optimizer does."""
        return self.engine.optimizer is not self.engine.basic_optimizer

    def _master(self, parameter: torch.nn.Parameter) -> torch.Tensor:
        return safe_get_full_fp32_param(parameter) if self._wrapped else parameter  # pyright: ignore

    def _moment(self, parameter: torch.nn.Parameter, name: str) -> torch.Tensor:
        if self._wrapped:
            return safe_get_full_optimizer_state(parameter, name)  # pyright: ignore
        return self.engine.basic_optimizer.state[parameter][name]

    def _restore(self, state: EngineState) -> None:
        if not self._wrapped:
            for name, parameter in self._parameters():
                moments = {m: state.moments[f"{name}//{m}"].to(parameter, copy=True) for m in MOMENTS}
                self.engine.optimizer.state[parameter] = {"step": torch.tensor(float(state.steps)), **moments}
            return
        self._prepare_moments(state.steps)
        for name, parameter in self._parameters():
            safe_set_full_fp32_param(parameter, state.weights[name].to(self.engine.device))
            for moment in MOMENTS:
                value = state.moments[f"{name}//{moment}"].to(self.engine.device)
                safe_set_full_optimizer_state(parameter, value, moment)

    def _prepare_moments(self, steps: int) -> None:
        """Make the optimizer's state, which comes into being with the first step, so that it can be set before that."""
        zero: Any = self.engine.optimizer
        names = ("fp32_partitioned_groups_flat", "fp32_groups_flat_partition", "single_partition_of_fp32_groups")
        flat = next(getattr(zero, name) for name in names if hasattr(zero, name))
        for part in flat:
            moments = {moment: torch.zeros_like(part) for moment in MOMENTS}
            zero.optimizer.state[part] = {"step": torch.tensor(float(steps)), **moments}
        if hasattr(zero, "_lazy_init_hp_params_optimizer_state"):
            zero._lazy_init_hp_params_optimizer_state()


def _copy(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.detach().float().cpu().clone()
