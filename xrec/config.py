"""The settings of every stage: one pydantic model a stage. Reading and writing YAML is `config_files.py`'s business.

`RunConfig` holds them all; a run does the stages whose sections its file names. Settings that say where and how wide
(workers, actors, device) sit in the stage's `compute` section and do not count as part of the result's identity.
"""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

Share = Annotated[float, Field(ge=0.0, le=1.0)]
Count = Annotated[int, Field(ge=1)]
Rate = Annotated[float, Field(gt=0.0)]


class ConfigError(ValueError):
    """A config is wrong; the message names the field, its value and the remedy."""


class Section(BaseModel):
    """Base of every section: unknown fields are refused, values are fixed once built."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    def identity(self) -> dict[str, Any]:
        """What determines the stage's result: everything but `compute`."""
        return self.model_dump(mode="json", exclude={"compute"})


class SampleConfig(Section):
    """The synthetic world with known truth."""

    users: Count = Field(default=600, description="number of users")
    items: Count = Field(default=300, description="number of items")
    interactions_per_user: Count = Field(default=24, description="items that each user has reviewed, on average")
    features: int = Field(
        default=8, ge=3, description="number of item features (aspects) that explanations are about; at most 24"
    )
    noise: Share = Field(default=0.03, description="share of interactions that ignore the user's taste")
    seed: int = Field(default=0, description="the same seed gives the same world")


class ImportConfig(Section):
    """A published XRec data folder."""

    path: str = Field(description="the folder with total*.csv or para_dict.pickle and trn/val/tst.pkl")


class PreprocessConfig(Section):
    """Filters, contiguous ids, and the one split that drives everything."""

    min_rating: float | None = Field(
        default=None, description="drop reviews rated below this; unrated reviews are kept"
    )
    k_core: Annotated[int, Field(ge=0)] = Field(
        default=0, description="repeatedly drop users and items with fewer interactions; 0: off"
    )
    split: Literal["random", "published"] = Field(
        default="random", description="`published` takes the source's own split"
    )
    ratios: tuple[Share, Share, Share] = Field(
        default=(0.8, 0.1, 0.1), description="train, val, test shares of the interactions"
    )
    explained_ratios: tuple[Share, Share, Share] | None = Field(
        default=None,
        description="shares for the pairs that have an explanation, where those are few; default: `ratios`",
    )
    zero_shot_users: Share = Field(default=0.0, description="share of users that no training stage sees")
    zero_shot_items: Share = Field(default=0.0, description="share of items that no training stage sees")
    seed: int = 0

    @model_validator(mode="after")
    def _ratios_sum_to_one(self):
        for name in ("ratios", "explained_ratios"):
            value = getattr(self, name)
            if value is not None and abs(sum(value) - 1) > 1e-6:
                raise ValueError(f"{name} = {value} sums to {sum(value):g}; the three shares must sum to 1")
        return self

    @model_validator(mode="after")
    def _published_split_holds_nobody_out(self):
        for name in ("zero_shot_users", "zero_shot_items"):
            if self.split == "published" and getattr(self, name) > 0:
                raise ValueError(
                    f"{name} = {getattr(self, name)} with split = published: the source's split has no zero-shot "
                    "nodes; use split = random"
                )
        return self


class EmbedCompute(Section):
    device: str = Field(default="auto", description="auto, cpu, cuda or cuda:N")
    threads: int | None = Field(default=None, ge=1, description="CPU threads; default: all")
    checkpoint_seconds: Annotated[float, Field(ge=0)] = Field(
        default=300.0, description="least time between states from which an interrupted run goes on"
    )


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


class PromptConfig(Section):
    """What the model reads before it explains (Figure 2)."""

    order: Literal["paper", "user_first"] = Field(
        default="paper", description="user_first shares a prefix between items of one user"
    )
    profiles: bool = Field(default=True, description="whether the user's and item's profiles are in the prompt")
    titles: bool = Field(default=True, description="whether the item's name is in the prompt")
    system: str = Field(
        default="Explain why the user would enjoy the item within 50 words.", description="system instruction"
    )
    max_profile_tokens: Count = Field(default=128, description="a longer profile is cut")
    max_title_tokens: Count = Field(default=32, description="a longer item name is cut")


class BackboneConfig(Section):
    """The embedded tiny LLaMA, built on the workspace's own training texts."""

    hidden: Count = Field(default=192, description="hidden size")
    layers: Count = 4
    heads: Count = 6
    kv_heads: Count = Field(default=6, description="key/value heads; fewer than `heads` is grouped-query attention")
    intermediate: Count = Field(default=512, description="feed-forward width")
    vocabulary: Count = Field(default=2048, description="byte-level BPE vocabulary size")
    max_length: Count = Field(default=512, description="longest sequence, in tokens")
    epochs: Count = 6
    reading_epochs: Annotated[int, Field(ge=0)] = Field(
        default=2, description="epochs in which it first learns to read a vector as the words whose mean it is"
    )
    batch_tokens: Count = Field(default=2048, description="tokens a step")
    learning_rate: Rate = 3e-3
    share: Annotated[float, Field(gt=0, le=1)] = Field(
        default=1.0,
        description="share of the training explanations it reads; the rest stay unseen for tuning to learn from",
    )
    patience: Count = Field(default=3, description="epochs without a better validation loss before stopping")
    descriptions: bool = Field(
        default=True, description="whether it also reads training nodes' titles and profiles, as texts of their own"
    )
    prompt: PromptConfig = Field(
        default=PromptConfig(), description="the prompts it reads; default: the file's `tune.prompt`"
    )
    seed: int = 0


class AdapterConfig(Section):
    """The mixture-of-experts adapter (section 3.2)."""

    experts: Count = 8
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.2
    top_k: int | None = Field(default=None, ge=1, description="experts that take part for a vector; default: all")
    normalize: Literal["none", "standardize"] = Field(
        default="standardize",
        description="scale each embedding dimension to mean 0, variance 1 over the training nodes",
    )


class TuneCompute(Section):
    workers: Count = Field(default=1, description="Ray Train workers (processes)")
    max_workers: int | None = Field(default=None, ge=1, description="elastic upper bound; default: `workers`")
    gpu: bool | Literal["auto"] = Field(default="auto", description="one GPU a worker")
    cpus_per_worker: Annotated[float, Field(gt=0)] = 1
    threads: int | None = Field(
        default=None, ge=1, description="CPU threads a worker; default: the machine's cores over the workers"
    )
    zero_stage: Literal[0, 1, 2, 3] = Field(
        default=0, description="DeepSpeed ZeRO stage; 3 also shards the frozen backbone"
    )
    gradient_checkpointing: bool = False
    max_failures: Annotated[int, Field(ge=-1)] = Field(default=3, description="worker failures survived; -1: no limit")
    micro_batch: int | None = Field(
        default=None, ge=1, description="rows a worker holds at once; default: its share of the batch"
    )
    deepspeed: dict[str, Any] = Field(
        default={}, description="further DeepSpeed settings, merged over those made here (offloading, bucket sizes)"
    )

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
    rows: Literal["all", "unread"] = Field(
        default="all",
        description="`unread`: explain only training pairs that the workspace's own backbone has not read and so "
        "cannot recite; set backbone.share below 1",
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
    batch_size: Count = Field(default=32, description="rows a step, over all workers")
    learning_rate: Rate = 3e-3
    weight_decay: float = Field(default=1e-2, ge=0)
    warmup_share: Share = Field(
        default=0.05, description="share of the steps in which the learning rate rises; then cosine"
    )
    clip: Rate = Field(default=1.0, description="gradient norm limit")
    validate_every: Count = Field(default=100, description="steps between validations and checkpoints")
    patience: Count = Field(default=5, description="validations without a better loss before stopping")
    max_length: Count = Field(
        default=512, description="longest sequence, in tokens; a longer row is cut in its profiles"
    )
    seed: int = 0
    compute: TuneCompute = TuneCompute()


class ExplainCompute(Section):
    actors: tuple[Count, Count] = Field(default=(1, 1), description="smallest and largest number of engine actors")
    gpus_per_actor: Annotated[float, Field(ge=0)] = 0
    cpus_per_actor: Annotated[float, Field(ge=0)] = 1
    threads: int | None = Field(
        default=None, ge=1, description="CPU threads an actor; default: the machine's cores over the actors"
    )
    batch_size: Count = Field(default=64, description="pairs generated together")
    rows_per_block: Count = Field(
        default=256, description="pairs a written file, which is also the step of a resumed run"
    )


class ExplainConfig(Section):
    """Batch explanation of pairs."""

    requests: str | None = Field(
        default=None, description="parquet of (user, item) or (user_id, item_id); default: the split's explained pairs"
    )
    split: Literal["train", "val", "test"] = "test"
    limit: int | None = Field(default=None, ge=1, description="explain only the first so many pairs")
    controls: tuple[Literal["shuffled", "off"], ...] = Field(
        default=(), description="also explain with embeddings shuffled among users and items, or without any signal"
    )
    max_words: Count = Field(default=50, description="generation stops at the end of a sentence within this many words")
    max_new_tokens: Count = 128
    temperature: float = Field(default=0.0, ge=0, description="0: greedy")
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    seed: int = 0
    compute: ExplainCompute = ExplainCompute()

    @field_validator("controls", mode="before")
    @classmethod
    def _off_is_a_name(cls, value: Any) -> Any:
        # YAML reads a bare `off` as false.
        return ["off" if v is False else v for v in value] if isinstance(value, list | tuple) else value


class EvaluateCompute(Section):
    device: str = Field(default="auto", description="auto, cpu, cuda or cuda:N")


class EvaluateConfig(Section):
    """Metrics over the predictions, and the causal check."""

    bert_score_model: str = Field(default="minilm", description="`minilm` (embedded), or any model by name or folder")
    bert_score_layers: int | None = Field(
        default=None,
        ge=1,
        description="layer whose states are compared; default: the one bert-score recommends, else the last",
    )
    likelihood_rows: int | None = Field(
        default=None, ge=1, description="pairs in the likelihood check; default: all of the split"
    )
    bootstrap: Count = Field(default=2000, description="resamples of each interval")
    probe: bool = Field(
        default=True,
        description="report what the embeddings know: linear probes for words of the items' and users' texts",
    )
    probe_words: Count = Field(default=30, description="words probed on each side, the most common ones of the texts")
    batch_size: Count = Field(default=32, description="texts that a model reads at once")
    seed: int = 0
    compute: EvaluateCompute = EvaluateCompute()


class ReportConfig(Section):
    """One self-contained HTML page."""

    examples: Annotated[int, Field(ge=0)] = Field(default=8, description="pairs shown side by side")
    title: str = "XRec report"


STAGES = ("sample", "import", "preprocess", "embed", "backbone", "tune", "explain", "evaluate", "report")


class RunConfig(Section):
    """Every stage's section; a run does those that are present, in the order of `STAGES`."""

    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True)

    workspace: str | None = Field(default=None, description="the run's folder or URI; `--workspace` overrides it")
    sample: SampleConfig | None = None
    import_: ImportConfig | None = Field(default=None, alias="import")
    preprocess: PreprocessConfig | None = None
    embed: EmbedConfig | None = None
    backbone: BackboneConfig | None = None
    tune: TuneConfig | None = None
    explain: ExplainConfig | None = None
    evaluate: EvaluateConfig | None = None
    report: ReportConfig | None = None

    @model_validator(mode="before")
    @classmethod
    def _backbone_reads_what_tuning_asks(cls, values: Any) -> Any:
        backbone, tune = (values.get(s) for s in ("backbone", "tune")) if isinstance(values, dict) else (None, None)
        if isinstance(backbone, dict) and isinstance(tune, dict) and "prompt" in tune:
            return {**values, "backbone": {"prompt": tune["prompt"], **backbone}}
        return values

    @model_validator(mode="after")
    def _one_source(self):
        if self.sample is not None and self.import_ is not None:
            raise ValueError("both `sample` and `import` are given; a workspace has one source of data, keep one")
        return self

    def stages(self) -> list[str]:
        """The stages this config names, in running order."""
        return [s for s in STAGES if self.section(s) is not None]

    def section(self, stage: str) -> Any:
        """The section of `stage`, or None."""
        return getattr(self, "import_" if stage == "import" else stage)


SECTIONS: dict[str, type[Section]] = {
    "sample": SampleConfig,
    "import": ImportConfig,
    "preprocess": PreprocessConfig,
    "embed": EmbedConfig,
    "backbone": BackboneConfig,
    "tune": TuneConfig,
    "explain": ExplainConfig,
    "evaluate": EvaluateConfig,
    "report": ReportConfig,
}
