"""The settings of a whole run: every stage's section, and the order of the stages."""

from typing import Any

from pydantic import ConfigDict, Field, model_validator

from xrec.config.base import Section
from xrec.config.baseline import BaselineConfig
from xrec.config.data import ImportConfig, PreprocessConfig, SampleConfig
from xrec.config.embed import EmbedConfig
from xrec.config.evaluation import EvaluateConfig, ReportConfig
from xrec.config.explainer import BackboneConfig, ExplainConfig, TuneConfig
from xrec.config.ingest import IngestConfig
from xrec.config.profile import ProfileConfig
from xrec.config.serve import ServeConfig
from xrec.config.study import AblateConfig, CompareConfig, SparsityConfig

STAGES = (
    "sample",
    "import",
    "ingest",
    "preprocess",
    "profile",
    "embed",
    "backbone",
    "tune",
    "explain",
    "evaluate",
    "compare",
    "ablate",
    "sparsity",
    "report",
)

# Those that run several systems, and take the whole run's settings beside their own section.
STUDIES = ("compare", "ablate", "sparsity")


class RunConfig(Section):
    """Every stage's section; a run does those that are present, in the order of `STAGES`."""

    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True)

    workspace: str | None = Field(default=None, description="the run's folder or URI; `--workspace` overrides it")
    sample: SampleConfig | None = None
    import_: ImportConfig | None = Field(default=None, alias="import")
    ingest: IngestConfig | None = None
    preprocess: PreprocessConfig | None = None
    profile: ProfileConfig | None = None
    embed: EmbedConfig | None = None
    backbone: BackboneConfig | None = None
    tune: TuneConfig | None = None
    explain: ExplainConfig | None = None
    evaluate: EvaluateConfig | None = None
    compare: CompareConfig | None = None
    ablate: AblateConfig | None = None
    sparsity: SparsityConfig | None = None
    report: ReportConfig | None = None
    baseline: BaselineConfig | None = Field(
        default=None, description="not a stage of a run: `xrec baseline` and studies read it"
    )
    serve: ServeConfig | None = Field(default=None, description="not a stage: `xrec serve` reads it")

    @model_validator(mode="after")
    def _one_source(self):
        given = [name for name in ("sample", "import", "ingest") if self.section(name) is not None]
        if len(given) > 1:
            raise ValueError(
                f"{' and '.join(f'`{name}`' for name in given)} are given; a workspace has one source of data, keep one"
            )
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
    "ingest": IngestConfig,
    "preprocess": PreprocessConfig,
    "profile": ProfileConfig,
    "embed": EmbedConfig,
    "backbone": BackboneConfig,
    "tune": TuneConfig,
    "explain": ExplainConfig,
    "evaluate": EvaluateConfig,
    "compare": CompareConfig,
    "ablate": AblateConfig,
    "sparsity": SparsityConfig,
    "report": ReportConfig,
    "baseline": BaselineConfig,
    "serve": ServeConfig,
}
