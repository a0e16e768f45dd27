"""What each stage asks of a cluster, by its settings, and what its own process takes.

A stage's workers and actors are its demands: refused where the cluster can never hold them, waited for where it cannot
hold them yet. How a cluster is looked at is the business of `cluster_shape.py`, what is waited for that of
`waiting.py`, and what fits that of `demands.py`.
"""

import math
import os
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from ray_jobs.cluster_shape import cluster_shape
from ray_jobs.demands import (
    ClusterShape,
    Demand,
    NodeType,
    bundle,
    how_many_fit,
    refuse_impossible,
)
from ray_jobs.runtime import start_ray
from ray_jobs.waiting import waiting
from xrec.config import (
    STUDIES,
    EmbedConfig,
    EvaluateConfig,
    ExplainCompute,
    ExplainConfig,
    IngestConfig,
    ProfileConfig,
    RunConfig,
    Section,
    StudyConfig,
    TuneCompute,
    TuneConfig,
)
from xrec.config.study import StudyCompute
from xrec.config_files import section_config

__all__ = [
    "ClusterShape",
    "Demand",
    "NodeType",
    "actor_options",
    "cluster_shape",
    "cpus_of",
    "demands",
    "driver_resources",
    "engine_bundles",
    "how_many_fit",
    "refuse_impossible",
    "require",
    "section_demands",
    "study_demands",
    "tune_demand",
    "waiting",
    "worker_bundle",
]

# Stages that compute in their own process, and take of a cluster what their `compute` says.
_IN_PROCESS = ("sample", "import", "preprocess", "embed", "backbone", "evaluate", "report", "baseline")


def demands(stage: str, config: RunConfig) -> list[Demand]:
    """What a stage needs at least at one time, beside its own process; empty where it has neither actors nor workers.

    Nothing is connected to. A stage that the config does not name has its defaults.
    """
    if stage in STUDIES:
        return _of_study(stage, config)
    return section_demands(stage, section_config(stage, config))


def section_demands(stage: str, section: Section) -> list[Demand]:
    """`demands` of a stage that is no study, from its own section."""
    return _DEMANDS[stage](section) if stage in _DEMANDS else []


def driver_resources(stage: str, config: RunConfig) -> dict[str, float]:
    """What the process of a stage itself takes, by Ray's names; empty where it leaves the work to others."""
    if stage not in _IN_PROCESS:
        return {}
    compute = section_config(stage, config).compute
    if stage == "embed" and compute.workers > 1:
        return {}
    accelerator = compute.accelerator_type if compute.gpus else None
    return bundle(compute.cpus, compute.gpus, compute.memory, accelerator)


def require(needed: list[Demand]) -> ClusterShape:
    """Connect to Ray, a session started here being as wide as needed, and refuse what will never fit.

    Returns:
        What the cluster is and may become.

    Raises:
        ConfigError: it does not fit.
        ConnectionError: `RAY_ADDRESS` names a cluster that does not answer.
    """
    start_ray(cpus_of(needed))
    shape = cluster_shape()
    refuse_impossible(needed, shape)
    return shape


def cpus_of(needed: list[Demand]) -> int:
    """Logical CPUs of a session started here: the machine's, or what is needed, and one for Ray Data's own tasks."""
    return max(os.cpu_count() or 1, math.ceil(sum(one.total("CPU") for one in needed)) + 1)


def actor_options(resources: dict[str, float]) -> dict[str, Any]:
    """A bundle as Ray Data, Ray tasks and Ray actors are told."""
    known = {"CPU": "num_cpus", "GPU": "num_gpus", "memory": "memory"}
    options: dict[str, Any] = {"num_cpus": 0} | {
        known[name]: amount for name, amount in resources.items() if name in known
    }
    others = {name: amount for name, amount in resources.items() if name not in known}
    return options | ({"resources": others} if others else {})


def engine_bundles(compute: ExplainCompute) -> list[dict[str, float]]:
    """Resources of one engine of the stage `explain`: of its one bundle, or of each worker's."""
    workers = compute.workers_per_engine if compute.placement == "PACK" else 1
    cpus = compute.cpus_per_actor if compute.workers_per_engine == 1 else max(1.0, compute.cpus_per_actor)
    memory = compute.memory_per_actor / workers if compute.memory_per_actor else None
    return [bundle(cpus / workers, compute.gpus_per_actor / workers, memory, compute.accelerator_type)] * workers


def worker_bundle(compute: TuneCompute, gpu: bool) -> dict[str, float]:
    """Resources of one worker of the stage `tune`."""
    accelerator = compute.accelerator_type if gpu else None
    return bundle(compute.cpus_per_worker, float(gpu), compute.memory_per_worker, accelerator)


def _of_ingest(config: IngestConfig) -> list[Demand]:
    compute = config.compute
    own = [bundle(compute.cpus_per_task, memory=compute.memory_per_task)]
    return [Demand("ingest: a task", own, 1, "ingest.compute.cpus_per_task or memory_per_task")]


def _of_profile(config: ProfileConfig) -> list[Demand]:
    compute = config.compute
    if config.backend == "batch":
        return []
    setting = "profile.compute.actors, cpus_per_actor or memory_per_actor"
    if config.backend != "vllm":
        # One that waits for an endpoint needs little, one that extracts works all the time.
        cpus = 1.0 if config.backend == "extractive" else compute.cpus_per_actor
        own = bundle(cpus, memory=compute.memory_per_actor)
        return [Demand("profile: an actor", [own], compute.actors[0], setting)]
    arguments, gpus = compute.engine, compute.gpus_per_actor
    workers = arguments.get("tensor_parallel_size", max(1, int(gpus))) * arguments.get("pipeline_parallel_size", 1)
    workers = workers if gpus else 1
    memory = compute.memory_per_actor / workers if compute.memory_per_actor else None
    own = [bundle(max(1.0, compute.cpus_per_actor) / workers, gpus / workers, memory, compute.accelerator_type)]
    named = "profile.compute.actors, cpus_per_actor, gpus_per_actor or memory_per_actor, or drop accelerator_type"
    return [
        Demand("profile: an engine", own * workers, compute.actors[0], named),
        Demand("profile: the tasks that read the requests", [bundle(1)], 1, ""),
    ]


def _of_embed(config: EmbedConfig) -> list[Demand]:
    compute = config.compute
    if compute.workers == 1:
        return []
    gpus, accelerator = float(compute.gpu is True), compute.accelerator_type if compute.gpu is True else None
    own = bundle(compute.cpus_per_worker, gpus, compute.memory_per_worker, accelerator)
    return [Demand("embed: a worker", [own], compute.workers, "embed.compute.workers or cpus_per_worker")]


def _of_tune(config: TuneConfig) -> list[Demand]:
    compute = config.compute
    return [tune_demand(compute, compute.gpu is True or compute.accelerator_type is not None)]


def tune_demand(compute: TuneCompute, gpu: bool) -> Demand:
    """The workers of the stage `tune`, with a GPU each or without."""
    setting = "tune.compute.workers, cpus_per_worker (a fraction will do) or memory_per_worker"
    if gpu:
        setting += ", or set tune.compute.gpu to auto or false and drop accelerator_type"
    return Demand("tune: a worker", [worker_bundle(compute, gpu)], compute.workers, setting)


def _of_explain(config: ExplainConfig) -> list[Demand]:
    compute = config.compute
    setting = "explain.compute.actors, cpus_per_actor, gpus_per_actor or memory_per_actor"
    if compute.accelerator_type:
        setting += ", or drop accelerator_type"
    if compute.workers_per_engine > 1 and compute.placement != "PACK":
        setting += ", or set explain.compute.placement to PACK, which spreads an engine over nodes (GPUs only)"
    return [Demand("explain: an engine", engine_bundles(compute), compute.actors[0], setting)]


def _of_evaluate(config: EvaluateConfig) -> list[Demand]:
    compute = config.compute
    accelerator = compute.accelerator_type if compute.gpus_per_actor else None
    own = [bundle(compute.cpus_per_actor, compute.gpus_per_actor, compute.memory_per_actor, accelerator)]
    setting = "evaluate.compute.actors, cpus_per_actor, gpus_per_actor or memory_per_actor"
    return [Demand("evaluate: an actor", own, compute.actors[0], setting)]


def study_demands(stage: str, compute: StudyCompute, work: list[tuple[RunConfig, tuple[str, ...]]]) -> list[Demand]:
    """The process of each system that runs at the same time, and the most that a stage of one of them asks for.

    Args:
        stage: of the study.
        compute: its settings.
        work: settings and stages of each piece of work.
    """
    own = bundle(compute.cpus_per_system, compute.gpus_per_system, compute.memory_per_system, compute.accelerator_type)
    at_once = min(compute.parallel, len(work))
    setting = f"{stage}.compute.parallel, cpus_per_system, gpus_per_system or memory_per_system"
    within = [section_demands(name, section_config(name, config)) for config, stages in work for name in stages]
    widest = max(within, key=lambda needed: [sum(one.total(name) for one in needed) for name in ("GPU", "CPU")])
    inside = [replace(one, name=f"{stage}: {one.name}", count=at_once * one.count) for one in widest]
    return [Demand(f"{stage}: a system", [own], at_once, setting), *inside]


def _of_study(stage: str, config: RunConfig) -> list[Demand]:
    from ray_jobs.study_systems import plan

    study: StudyConfig = section_config(stage, config)
    return study_demands(stage, study.compute, [(run.config, run.own) for run in plan(config, study)])


_DEMANDS: dict[str, Callable[[Any], list[Demand]]] = {
    "ingest": _of_ingest,
    "profile": _of_profile,
    "embed": _of_embed,
    "tune": _of_tune,
    "explain": _of_explain,
    "evaluate": _of_evaluate,
}
