"""Settings of evaluation, of its metrics, and of the report."""

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from xrec.config.base import Accelerator, Count, Gibibytes, ProcessCompute, Rate, Section
from xrec.config.profile import Price

MetricFamily = Literal[
    "length",
    "prompt_copies",
    "rouge",
    "bleu",
    "feature",
    "bert_score",
    "bart_score",
    "bleurt",
    "gpt_score",
    "factuality",
    "grounding",
]
_OFFLINE: tuple[MetricFamily, ...] = (
    "length",
    "prompt_copies",
    "rouge",
    "bleu",
    "feature",
    "bert_score",
    "factuality",
    "grounding",
)


class BertScoreConfig(Section):
    """BERTScore; the paper's: model roberta-large, rescaled (`configs/paper.yaml`)."""

    model: str = Field(default="minilm", description="`minilm` (embedded), or any encoder by name or folder")
    layers: int | None = Field(
        default=None,
        ge=1,
        description="layer whose states are compared; default: the one bert-score recommends, else the last",
    )
    rescale: bool | Literal["auto"] = Field(
        default="auto", description="subtract the model's baseline; auto: where bert-score knows the model's"
    )


class BartScoreConfig(Section):
    """BARTScore; the paper's: facebook/bart-large-cnn with the ParaBank checkpoint."""

    model: str = Field(default="facebook/bart-large-cnn", description="any BART by Hugging Face name or folder")
    checkpoint: str | None = Field(
        default=None, description="file of further weights, such as the published bart_score.pth (ParaBank)"
    )


class BleurtConfig(Section):
    """BLEURT; the paper's: the test checkpoint, which is tiny-128."""

    model: str = Field(
        default="Elron/bleurt-tiny-128", description="a BERT with BLEURT's head, by Hugging Face name or folder"
    )


class JudgeConfig(Section):
    """Language models behind an OpenAI-compatible endpoint, which score or check texts."""

    models: tuple[str, ...] = Field(default=("gpt-4o-mini",), description="the judges, by name at the endpoint")
    base_url: str | None = Field(default=None, description="endpoint, such as http://HOST:8000/v1; default: OpenAI's")
    api_key_variable: str = Field(default="OPENAI_API_KEY", description="the environment variable that holds the key")
    structured_output: Literal["json_schema", "json_object", "none"] = Field(
        default="json_schema", description="how the endpoint is asked for JSON; answers are checked in any case"
    )
    max_tokens: Count = Field(default=256, description="longest answer, in tokens")
    concurrency: Count = Field(default=16, description="requests that an actor has open at once")
    request_timeout: Rate = Field(default=60.0, description="seconds that one request may take")
    max_attempts: Count = Field(default=5, description="requests for one answer, with every repetition")
    prices: dict[str, Price] = Field(default={}, description="price by model name, for the cost")


class FactualityConfig(Section):
    """What decides whether a text supports a statement."""

    checker: Literal["lexical", "nli", "judge"] = Field(
        default="lexical",
        description="words, names and negations compared, without a model's judgement; an entailment model; the judges",
    )
    nli_model: str = Field(
        default="MoritzLaurer/DeBERTa-v3-base-mnli-fever-anli",
        description="for checker nli: a sequence classifier with an entailment label, by name or folder",
    )
    threshold: Annotated[float, Field(gt=0, lt=1)] = Field(
        default=0.5, description="support from which on a statement counts as supported"
    )
    source_reviews: Annotated[int, Field(ge=0)] = Field(
        default=20, description="training reviews of the item, and of the user, that may support a statement"
    )


class EvaluateCompute(ProcessCompute):
    device: str = Field(default="auto", description="auto, cpu, cuda or cuda:N")
    actors: tuple[Count, Count] = Field(default=(1, 1), description="smallest and largest number of scoring actors")
    cpus_per_actor: Annotated[float, Field(ge=0)] = Field(default=1, description="logical CPUs of a scoring actor")
    gpus_per_actor: Annotated[float, Field(ge=0)] = Field(default=0, description="GPUs of a scoring actor")
    memory_per_actor: Gibibytes | None = Field(
        default=None, description="GiB that a scoring actor reserves; default: none"
    )
    accelerator_type: Accelerator | None = Field(
        default=None, description="kind of GPU of the actors' nodes, such as A100; default: any"
    )
    rows_per_block: Count = Field(
        default=2048, description="predictions a written file, which is also the step of a resumed run"
    )


class EvaluateConfig(Section):
    """Metrics over the predictions, and the causal check."""

    metrics: tuple[MetricFamily, ...] = Field(
        default=_OFFLINE, description="what is computed; the default needs no download and no endpoint"
    )
    bert_score: BertScoreConfig = BertScoreConfig()
    bart_score: BartScoreConfig = BartScoreConfig()
    bleurt: BleurtConfig = BleurtConfig()
    judge: JudgeConfig = JudgeConfig()
    factuality: FactualityConfig = FactualityConfig()
    likelihood: bool = Field(
        default=True,
        description="whether to compute how probable the references are: with the pair's own embeddings, with shuffled "
        "ones, and under each of `explain.controls`",
    )
    likelihood_rows: int | None = Field(
        default=None,
        ge=1,
        description="pairs in the likelihood check, drawn at random by `seed`; default: all of the split. A CPU core "
        "scores a few pairs a second under each signal",
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

    @model_validator(mode="before")
    @classmethod
    def _metrics_once(cls, values: Any) -> Any:
        metrics = values.get("metrics") if isinstance(values, dict) else None
        if isinstance(metrics, list | tuple) and len(set(metrics)) < len(metrics):
            raise ValueError(f"metrics = {list(metrics)} names one twice; keep each once")
        return values


class ReportConfig(Section):
    """One self-contained HTML page."""

    examples: Annotated[int, Field(ge=0)] = Field(default=8, description="pairs shown side by side")
    title: str = "XRec report"
    compute: ProcessCompute = ProcessCompute()
