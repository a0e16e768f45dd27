"""The settings of every stage: one pydantic model a stage. Reading and writing YAML is `config_files.py`'s business.

`RunConfig` holds them all; a run does the stages whose sections its file names. Settings that say where and how wide
(workers, actors, device) sit in the stage's `compute` section and do not count as part of the result's identity.
"""

from xrec.config.base import ConfigError, Section
from xrec.config.baseline import BaselineCompute, BaselineConfig
from xrec.config.data import ImportConfig, PreprocessConfig, SampleConfig
from xrec.config.embed import EmbedCompute, EmbedConfig
from xrec.config.evaluation import (
    BartScoreConfig,
    BertScoreConfig,
    BleurtConfig,
    EvaluateCompute,
    EvaluateConfig,
    FactualityConfig,
    JudgeConfig,
    ReportConfig,
)
from xrec.config.explainer import (
    AdapterConfig,
    BackboneConfig,
    ExplainCompute,
    ExplainConfig,
    PromptConfig,
    TuneCompute,
    TuneConfig,
)
from xrec.config.ingest import IngestCompute, IngestConfig
from xrec.config.profile import TEXT_KINDS, Price, ProfileCompute, ProfileConfig, TextKind, WritingPrompts
from xrec.config.run import SECTIONS, STAGES, STUDIES, RunConfig
from xrec.config.serve import ServeConfig, ServeLimits, ServeReplicas
from xrec.config.study import AblateConfig, CompareConfig, SparsityConfig, StudyConfig

__all__ = [
    "SECTIONS",
    "STAGES",
    "STUDIES",
    "TEXT_KINDS",
    "AblateConfig",
    "AdapterConfig",
    "BackboneConfig",
    "BartScoreConfig",
    "BaselineCompute",
    "BaselineConfig",
    "BertScoreConfig",
    "BleurtConfig",
    "CompareConfig",
    "ConfigError",
    "EmbedCompute",
    "EmbedConfig",
    "EvaluateCompute",
    "EvaluateConfig",
    "ExplainCompute",
    "ExplainConfig",
    "FactualityConfig",
    "ImportConfig",
    "IngestCompute",
    "IngestConfig",
    "JudgeConfig",
    "PreprocessConfig",
    "Price",
    "ProfileCompute",
    "ProfileConfig",
    "PromptConfig",
    "ReportConfig",
    "RunConfig",
    "SampleConfig",
    "Section",
    "ServeConfig",
    "ServeLimits",
    "ServeReplicas",
    "SparsityConfig",
    "StudyConfig",
    "TextKind",
    "TuneCompute",
    "TuneConfig",
    "WritingPrompts",
]
