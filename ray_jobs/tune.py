"""The stage `tune`: the adapter's training on Ray Train workers with DeepSpeed, resumable at any number of workers.

What is learned, and in which order, is `xrec.explainer.tuning`'s business; how tensors are sharded is
`deepspeed_engine.py`'s. Here is where it runs, how wide, and where its state is kept.
"""

import copy
import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pyarrow.fs
import ray
import ray.train
from ray.train import CheckpointConfig, FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchConfig, TorchTrainer
from ray.train.v2.api.exceptions import TrainingFailedError, WorkerGroupError
from transformers import AutoTokenizer

from ray_jobs.resources import how_many_fit, require, section_demands, tune_demand, waiting, worker_bundle
from ray_jobs.tune_progress import show_progress
from xrec.config import ConfigError, TuneConfig
from xrec.explainer.loading import backbone_folder
from xrec.explainer.tuning import LOSS, SHUFFLED_LOSS, phases_of
from xrec.explainer.tuning_data import TuningData, load_tuning_data
from xrec.fingerprint import hash_files
from xrec.workspace import Workspace, WorkspaceError

CHECKPOINTS, TENSORBOARD, ADAPTER = "checkpoints", "tensorboard", "adapter"
_KEPT_CHECKPOINTS = 2
_STEP = "step_"
_DIVERGED = "diverged"


def run(workspace: Workspace, config: TuneConfig, *, force: bool = False, dry_run: bool = False) -> str:
    """Tune an adapter on the workspace's training pairs and write `tune/adapter/`.

    An interrupted run, whether a worker or this process was killed, goes on from its last checkpoint.

    Args:
        workspace: with `preprocess` and `embed` finished, and `backbone` where the config names none.
        config: the stage's settings.
        force: discard what is there and start anew.
        dry_run: say what would be done; write nothing.

    Returns:
        One line that says what was written where.

    Raises:
        WorkspaceError: an input stage has not finished, the workspace is out of the workers' reach, or workers
            failed more often between two checkpoints than `compute.max_failures` allows.
        ConfigError: the cluster can never hold the workers asked for.
        ValueError: the backbone cannot be loaded.
    """
    target, compute = workspace.path("tune", ADAPTER), config.compute
    highest = compute.max_workers or compute.workers
    number = f"{compute.workers} to {highest}" if highest > compute.workers else f"{compute.workers}"
    workers = f"{number} worker{'s' * (highest > 1)}, ZeRO-{compute.zero_stage}"
    if dry_run:
        data, steps = _plan(workspace, config)
        return (
            f"tune: would train {config.adapter.experts} experts a side on {len(data.train):,} rows "
            f"({steps:,} steps of {config.batch_size}, {workers}) -> {target}"
        )
    _refuse_unreachable(workspace)
    inputs, external = _inputs(workspace, config)
    stage = workspace.stage("tune", config.identity(), inputs, external, force)
    if stage.done:
        return f"tune: already finished ({target})"
    _, steps = _plan(workspace, config)
    gpu = use_gpu(config)
    with show_progress(workspace, steps), waiting([tune_demand(compute, gpu)]):
        metrics = _fit(workspace, config, gpu)
    stage.finish(metrics, exclude=(f"{CHECKPOINTS}/", f"{TENSORBOARD}/"))
    losses = (
        f", val nll {metrics[LOSS]:.4f} per token (shuffled {metrics[SHUFFLED_LOSS]:.4f})" if LOSS in metrics else ""
    )
    return f"tune: {metrics['train/rows']:,} rows, {metrics['steps']:,} steps, {workers}{losses} -> {target}"


def use_gpu(config: TuneConfig) -> bool:
    """Connect to Ray; whether workers get a GPU each, after checking that the cluster can hold the workers at all.

    Raises:
        ConfigError: it never can, not even after it has scaled up.
    """
    compute = config.compute
    shape = require(section_demands("tune", config))
    if compute.gpu != "auto" or compute.accelerator_type:
        return compute.gpu is not False
    fitting = how_many_fit(tune_demand(compute, True), shape)
    return fitting is not None and fitting >= compute.workers


def _refuse_unreachable(workspace: Workspace) -> None:
    if not workspace.is_local and workspace.uri.startswith("memory:"):
        raise WorkspaceError(
            f"workspace {workspace.uri}: `tune` runs in processes of its own, which cannot see this process's memory; "
            "use a folder or an object store (s3://…), or call xrec.explainer.tune in this process"
        )


def _inputs(workspace: Workspace, config: TuneConfig) -> tuple[list[str], dict[str, str]]:
    inputs = ["preprocess", "embed", *workspace.text_inputs()]
    if config.backbone is None:
        return [*inputs, "backbone"], {}
    return inputs, {"backbone": hash_files(config.backbone)} if os.path.isdir(config.backbone) else {}


def _plan(workspace: Workspace, config: TuneConfig) -> tuple[TuningData, int]:
    """Read the rows once here, so that what is wrong with them is said before any worker starts."""
    for stage in ("preprocess", "embed", *(() if config.backbone else ("backbone",))):
        workspace.manifest(stage)
    with backbone_folder(workspace, config.backbone) as path:
        try:
            tokenizer = AutoTokenizer.from_pretrained(path)
        except OSError as error:
            raise ConfigError(
                f"tune.backbone = {config.backbone!r} cannot be loaded ({error}); give a Hugging Face name that this "
                "machine can reach, or a folder"
            ) from error
    data = load_tuning_data(workspace, config, tokenizer)
    return data, sum(phase.steps for phase in phases_of(data, config))


def _fit(workspace: Workspace, config: TuneConfig, gpu: bool) -> dict[str, Any]:
    """Train, and from the last checkpoint again after each failure that `compute.max_failures` allows.

    Failures are counted here, because Ray Train's own count is never set back: on spot machines, a long run would lose
    more nodes than any number that also ends a run with a bug. A node lost without notice looks like a failed worker.
    """
    most, failures, reached = config.compute.max_failures, 0, _newest_checkpoint(workspace)
    while True:
        try:
            figures: Any = _trainer(workspace, config, gpu).fit().return_value
            if _DIVERGED in figures:
                # Ends here: from the same checkpoint the same steps would follow.
                raise WorkspaceError(f"workspace {workspace.uri}: {figures[_DIVERGED]}")
            return figures
        except WorkerGroupError as error:
            rank, problem = min(error.worker_failures.items(), key=lambda failure: failure[0])
            cause = str(problem).strip().splitlines()[-1]
            before, reached = reached, _newest_checkpoint(workspace)
            failures = failures + 1 if reached == before else 1
            if 0 <= most < failures:
                raise WorkspaceError(
                    f"workspace {workspace.uri}: tuning failed on worker {rank}: {cause}; "
                    "run `xrec tune` again to resume from the last checkpoint"
                ) from error
            print(f"tune: worker {rank} failed ({cause}); going on from {reached or 'the start'}", file=sys.stderr)
        except TrainingFailedError as error:
            raise WorkspaceError(f"workspace {workspace.uri}: tuning failed: {error}; run `xrec tune` again") from error


def _newest_checkpoint(workspace: Workspace) -> str:
    """The name of the last step that is saved; empty where there is none."""
    names = (file.split("/")[0] for file in workspace.files("tune", CHECKPOINTS))
    return max((name for name in names if name.startswith(_STEP)), default="")


def _trainer(workspace: Workspace, config: TuneConfig, gpu: bool) -> TorchTrainer:
    compute = config.compute
    highest = compute.max_workers or compute.workers
    return TorchTrainer(
        train_worker,
        train_loop_config={"workspace": workspace.uri, "config": config.model_dump(mode="json"), "gpu": gpu},
        torch_config=TorchConfig(backend="nccl" if gpu else "gloo"),
        scaling_config=ScalingConfig(
            num_workers=compute.workers if highest == compute.workers else (compute.workers, highest),
            use_gpu=gpu,
            resources_per_worker=worker_bundle(compute, gpu),
        ),
        run_config=RunConfig(
            # The same name and path on every run: that is how Ray Train finds the checkpoints of an interrupted one.
            name=CHECKPOINTS,
            storage_path=workspace.path("tune"),
            storage_filesystem=None if workspace.is_local else _arrow_filesystem(workspace),
            # A preemption with notice is Ray Train's business, without a limit; all else comes back to be counted.
            failure_config=FailureConfig(max_failures=0, max_preemption_failures=-1),
            checkpoint_config=CheckpointConfig(num_to_keep=_KEPT_CHECKPOINTS),
        ),
    )


def _arrow_filesystem(workspace: Workspace) -> pyarrow.fs.FileSystem:
    return pyarrow.fs.PyFileSystem(pyarrow.fs.FSSpecHandler(workspace.fs))


def train_worker(settings: dict[str, Any]) -> dict[str, Any]:
    """What each Ray Train worker runs; rank 0 writes the log and the adapter, and returns the stage's figures.

    Args:
        settings: `workspace` (URI), `config` (of the stage, as JSON values), `gpu` (whether each worker has one).
    """
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    if not settings["gpu"]:
        # Must be set before anything imports DeepSpeed.
        os.environ["DS_ACCELERATOR"] = "cpu"
    import torch
    from ray.train.torch import get_device

    from ray_jobs import deepspeed_engine
    from xrec.explainer.tuning import Tuner, TuningDiverged, assemble, dtype_of, final_metrics, finish_adapter
    from xrec.explainer.tuning_engine import Progress

    workspace, config = Workspace(settings["workspace"]), TuneConfig.model_validate(settings["config"])
    if not settings["gpu"]:
        torch.set_num_threads(config.compute.threads or _threads_per_worker())
    device = get_device()
    dtype = dtype_of(config, device)
    deepspeed_engine.start_processes(settings["gpu"])
    with backbone_folder(workspace, config.backbone) as path:
        backbone, tokenizer = deepspeed_engine.load_frozen_backbone(path, config, dtype, device)
        table = deepspeed_engine.input_embeddings(backbone)
        model, data = assemble(workspace, config, path, backbone, tokenizer, table)
    adapter = copy.deepcopy(model.adapter)
    state, progress = _last_checkpoint() or (None, Progress())
    engine = deepspeed_engine.DeepSpeedEngine(model, config, dtype, state)

    def save(progress: Progress) -> None:
        _report(engine.state(), progress, adapter.spec, engine.rank == 0)

    with _logger(workspace, progress.step, engine.rank == 0) as log:
        try:
            progress = Tuner(engine, data, config, config.compute.micro_batch, log, save).run(progress)
        except TuningDiverged as error:
            return {_DIVERGED: str(error)}
    state = engine.state()
    if engine.rank == 0:
        with tempfile.TemporaryDirectory() as folder:
            finish_adapter(adapter, state, progress).save_pretrained(folder)
            workspace.upload(folder, "tune", ADAPTER)
    return final_metrics(progress, data)


def _threads_per_worker() -> int:
    return max(1, len(os.sched_getaffinity(0)) // ray.train.get_context().get_local_world_size())


def _last_checkpoint() -> tuple[Any, Any] | None:
    from xrec.explainer.tuning_engine import load_checkpoint

    checkpoint = ray.train.get_checkpoint()
    if checkpoint is None:
        return None
    with checkpoint.as_directory() as folder:
        return load_checkpoint(folder)[:2]


def _report(state: Any, progress: Any, spec: Any, first: bool) -> None:
    """Hand a checkpoint to Ray Train; a barrier for all workers."""
    from xrec.explainer.tuning_engine import save_checkpoint

    figures = {"step": progress.step, "best_loss": progress.best_loss}
    name = f"{_STEP}{progress.step:08d}"
    with tempfile.TemporaryDirectory() as folder:
        if first:
            save_checkpoint(folder, state, progress, spec)
        checkpoint = ray.train.Checkpoint.from_directory(folder) if first else None
        ray.train.report(figures, checkpoint=checkpoint, checkpoint_dir_name=name)


@contextmanager
def _logger(workspace: Workspace, step: int, first: bool) -> Iterator[Any]:
    """The function that rank 0 logs with: JSON lines and TensorBoard, without lines that a resumed run logs again."""
    from xrec.metric_logging import MetricLogger

    if not first:
        yield None
        return
    with tempfile.TemporaryDirectory() as folder:
        events = workspace.path("tune", TENSORBOARD) if workspace.is_local else folder
        with MetricLogger(workspace, "tune", tensorboard=events, keep_below=step + 1) as logger:
            yield lambda number, figures: logger.log(number, **figures)
        if not workspace.is_local:
            workspace.upload(folder, "tune", TENSORBOARD)


if __name__ == "__main__":
    from ray_jobs.job import main
    from ray_jobs.tune import run as importable_run  # workers import this module by its name, not as __main__

    main("tune", importable_run)
