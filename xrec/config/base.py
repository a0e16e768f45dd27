"""What every section of the settings is built from."""

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

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
