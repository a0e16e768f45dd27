"""Settings of studies: several systems, each at several seeds, on one workspace's data and split."""

import re
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from xrec.config.base import Accelerator, Amount, Count, Gibibytes, Section

Overrides = dict[str, Any]
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")
_ABLATIONS: dict[str, Overrides] = {
    "xrec": {},
    "without_profiles": {"tune.prompt.profiles": False},
    "without_injection": {"tune.injection": "none"},
    "without_both": {"tune.prompt.profiles": False, "tune.injection": "none"},
}
_BASELINES = ("att2seq", "nrt", "peter", "peter_plus", "pepler", "item_profile", "similar_user")
_SYSTEMS: dict[str, Overrides] = {"xrec": {}} | {name: {"baseline.name": name} for name in _BASELINES}


class StudyCompute(Section):
    parallel: Count = Field(default=1, description="systems at work at the same time")
    cpus_per_system: Amount = Field(
        default=1, description="logical CPUs of a system's own process, beside its workers and actors"
    )
    gpus_per_system: Amount = Field(default=0, description="GPUs of a system's own process: baselines train in it")
    memory_per_system: Gibibytes | None = Field(
        default=None, description="GiB that a system's own process reserves; default: none"
    )
    accelerator_type: Accelerator | None = Field(
        default=None, description="kind of GPU of the nodes of systems' own processes; default: any"
    )


class StudyConfig(Section):
    """Systems side by side. One system is a set of overrides of the run's other settings, as `--set` takes them."""

    seeds: tuple[Annotated[int, Field(ge=0)], ...] = Field(
        default=(0,),
        description="each system is tuned or trained once for each; the data, the split, the graph's "
        "embeddings and the backbone are the same for all",
    )
    systems: dict[str, Overrides] = Field(
        default={"xrec": {}}, description="name -> overrides; one with `baseline.name` is that baseline, not XRec"
    )
    reference: str = Field(default="xrec", description="the system that the others are compared with")
    metric: str = Field(
        default="bert_score_f1",
        description="column of `scores` by which the pairs are chosen that systems differ on; where it was not "
        "computed, the first one that was",
    )
    examples: Annotated[int, Field(ge=0)] = Field(default=8, description="pairs shown on which systems differ most")
    bootstrap: Count = Field(default=2000, description="resamples of each interval")
    zero_shot: Literal["leave out", "keep"] = Field(
        default="leave out",
        description="pairs of users and items that training has not seen, which most baselines cannot tell apart",
    )
    compute: StudyCompute = StudyCompute()

    @field_validator("seeds")
    @classmethod
    def _seeds_differ(cls, value: tuple[int, ...]) -> tuple[int, ...]:
        if not value or len(set(value)) < len(value):
            raise ValueError(f"seeds = {list(value)}: name at least one, each once")
        return value

    @field_validator("systems")
    @classmethod
    def _names_are_folders(cls, value: dict[str, Overrides]) -> dict[str, Overrides]:
        for name in value:
            if not _NAME.fullmatch(name):
                raise ValueError(f"systems: {name!r} names a folder; use letters, digits, `_`, `-` and `.`")
        return value

    @model_validator(mode="after")
    def _reference_is_a_system(self):
        if self.reference not in self.systems:
            raise ValueError(f"reference = {self.reference!r} is none of the systems ({', '.join(self.systems)})")
        return self


class CompareConfig(StudyConfig):
    """XRec beside baselines, and beside predictions that were made elsewhere (the paper's Table 1)."""

    systems: dict[str, Overrides] = Field(
        default=_SYSTEMS, description="name -> overrides; one with `baseline.name` is that baseline, not XRec"
    )
    imported: tuple[str, ...] = Field(
        default=(), description="names under which `xrec evaluate --predictions` has scored other systems' texts"
    )


class AblateConfig(StudyConfig):
    """XRec without its parts (the paper's Figure 3)."""

    systems: dict[str, Overrides] = Field(
        default=_ABLATIONS, description="name -> overrides; one with `baseline.name` is that baseline, not XRec"
    )


class SparsityConfig(StudyConfig):
    """Users by how much is known of them (the paper's Figure 4)."""

    groups: Annotated[int, Field(ge=2)] = Field(
        default=5,
        description="groups of users, as equal in size as ties allow, by their training interactions; "
        "zero-shot users are a group of their own",
    )
    zero_shot: Literal["leave out", "keep"] = "keep"
