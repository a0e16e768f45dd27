"""Settings of LightGCN."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from xrec.config.base import Count, Gibibytes, ProcessCompute, Rate, Section


class EmbedCompute(ProcessCompute):
    workers: Count = Field(
        default=1, description="processes that share the graph; 1 is the present one, more are Ray Train's workers"
    )
    device: str = Field(default="auto", description="of the present process: auto, cpu, cuda or cuda:N")
    gpu: bool | Literal["auto"] = Field(default="auto", description="one GPU a worker")
    cpus_per_worker: Annotated[float, Field(gt=0)] = Field(default=1, description="logical CPUs of a worker")
    memory_per_worker: Gibibytes | None = Field(default=None, description="GiB that a worker reserves; default: none")
    threads: int | None = Field(
        default=None, ge=1, description="CPU threads of a process; default: all, or the machine's over its workers"
    )
    max_failures: Annotated[int, Field(ge=-1)] = Field(default=3, description="worker failures survived; -1: no limit")
    checkpoint_seconds: Annotated[float, Field(ge=0)] = Field(
        default=300.0, description="least time between states from which an interrupted run goes on"
    )

    @model_validator(mode="after")
    def _one_way_to_a_device(self):
        if self.workers > 1 and self.device != "auto":
            raise ValueError(
                f"device = {self.device!r} is where the present process computes, but workers = {self.workers}; leave "
                "it at auto, and say by `gpu` whether each worker has one"
            )
        return self


class EmbedConfig(Section):
    """LightGCN (paper Eq. 7-11)."""

    dim: Count = Field(default=64, description="embedding width")
    layers: Count = Field(default=3, description="propagation layers")
    batch_size: Count = Field(default=1024, description="positive interactions a step")
    learning_rate: Rate = Field(default=1e-3, description="Adam's")
    weight_decay: float = Field(default=1e-4, ge=0, description="L2 weight on the batch's layer-0 embeddings (Eq. 10)")
    max_epochs: Count = Field(default=500, description="passes over the training interactions at most")
    patience: Count = Field(default=10, description="evaluations without a better validation Recall@20 before stopping")
    evaluate_every: Count = Field(default=1, description="epochs between validations")
    top_k: tuple[Count, ...] = Field(
        default=(5, 10, 20), description="cut-offs of the ranking metrics; 20 must be among them"
    )
    seed: Annotated[int, Field(ge=0)] = Field(default=0, description="the same seed gives the same embeddings")
    compute: EmbedCompute = EmbedCompute()

    @model_validator(mode="after")
    def _reports_what_stops(self):
        if 20 not in self.top_k:
            raise ValueError(f"top_k = {self.top_k} lacks 20; early stopping goes by Recall@20, add it")
        return self
