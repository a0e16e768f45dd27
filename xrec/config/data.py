"""Settings of the stages that make a workspace's data and split it."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from xrec.config.base import Count, ProcessCompute, Section, Share


class SampleConfig(Section):
    """The synthetic world with known truth."""

    users: Count = Field(default=600, description="number of users")
    items: Count = Field(default=300, description="number of items")
    interactions_per_user: Count = Field(default=24, description="items that each user has reviewed, on average")
    features: int = Field(
        default=8, ge=3, description="number of item features (aspects) that explanations are about; at most 24"
    )
    wordings: int | None = Field(
        default=None,
        ge=1,
        description="different wordings of each of an explanation's two clauses; few are learned sooner; default: all",
    )
    noise: Share = Field(default=0.03, description="share of interactions that ignore the user's taste")
    seed: int = Field(default=0, description="the same seed gives the same world")
    compute: ProcessCompute = ProcessCompute()


class ImportConfig(Section):
    """A published XRec data folder."""

    path: str = Field(description="the folder with total*.csv or para_dict.pickle and trn/val/tst.pkl")
    compute: ProcessCompute = ProcessCompute()


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
    compute: ProcessCompute = ProcessCompute()

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
