"""What every section of the settings is built from."""

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

Share = Annotated[float, Field(ge=0.0, le=1.0)]
Count = Annotated[int, Field(ge=1)]
Rate = Annotated[float, Field(gt=0.0)]
Amount = Annotated[float, Field(ge=0.0)]
Gibibytes = Annotated[float, Field(gt=0.0)]
# As Ray names them: A100, H100, TPU-V4, or whatever `accelerator_type:NAME` a node is started with.
Accelerator = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]


class ConfigError(ValueError):
    """A config is wrong; the message names the field, its value and the remedy."""


class Section(BaseModel):
    """Base of every section: unknown fields are refused, values are fixed once built."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    def identity(self) -> dict[str, Any]:
        """What determines the stage's result: everything but `compute`."""
        return self.model_dump(mode="json", exclude={"compute"})


class ProcessCompute(Section):
    """What a stage that computes in its own process takes of a cluster, when it is submitted to one."""

    cpus: Amount = Field(default=1, description="logical CPUs that a submitted job reserves for the stage's process")
    gpus: Amount = Field(default=0, description="GPUs that a submitted job reserves for the stage's process")
    memory: Gibibytes | None = Field(
        default=None, description="GiB that a submitted job reserves for the stage's process; default: none"
    )
    accelerator_type: Accelerator | None = Field(
        default=None, description="kind of GPU of the node that a submitted job runs on, such as A100; default: any"
    )
