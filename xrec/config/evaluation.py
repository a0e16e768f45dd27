"""Settings of evaluation and of the report."""

from typing import Annotated

from pydantic import Field

from xrec.config.base import Count, Section


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
