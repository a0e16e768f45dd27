"""Settings of the other systems that explain the same pairs: five models from the literature, and two floors."""

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from xrec.config.base import Count, ProcessCompute, Rate, Section

SystemName = Literal["att2seq", "nrt", "peter", "peter_plus", "pepler", "item_profile", "similar_user"]
# The bytes and the special tokens: what a byte-level vocabulary begins with.
SMALLEST_VOCABULARY = 259


class BaselineCompute(ProcessCompute):
    device: str = Field(default="auto", description="auto, cpu, cuda or cuda:N")
    threads: int | None = Field(default=None, ge=1, description="CPU threads; default: all")
    generation_batch: Count = Field(default=256, description="pairs explained together")


class BaselineConfig(Section):
    """One system, trained on the training explanations and asked for the same pairs as XRec."""

    name: SystemName = Field(default="peter", description="which system")
    hidden: Count = Field(default=128, description="width of embeddings and layers")
    layers: Count = Field(default=2, description="decoder layers")
    heads: Count = Field(default=4, description="attention heads (PETER, PEPLER)")
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.2
    vocabulary: Annotated[int, Field(ge=SMALLEST_VOCABULARY)] = Field(
        default=2048, description="byte-level BPE vocabulary size"
    )
    epochs: Count = Field(
        default=6,
        description="passes over the training explanations at most; PEPLER's language model, where it is trained here, "
        "takes half of them",
    )
    batch_size: Count = Field(default=32, description="explanations a step")
    learning_rate: Rate = Field(default=3e-3, description="Adam's at its highest; lower it for a large PEPLER model")
    patience: Count = Field(default=3, description="epochs without a better validation loss before stopping")
    feature: Literal["item", "reference"] = Field(
        default="item",
        description="PETER+'s feature of an explained pair: the item's commonest in training, or, as in its paper, the "
        "one of the pair's own true explanation, which tells it part of the answer",
    )
    model: str | None = Field(
        default=None,
        description="PEPLER's GPT-2 by Hugging Face name or folder; default: a small one trained here first",
    )
    prompt_epochs: Count = Field(
        default=2, description="PEPLER: epochs at most in which the prompts are tuned and the language model is frozen"
    )
    split: Literal["train", "val", "test"] = Field(default="test", description="whose explained pairs are explained")
    limit: int | None = Field(default=None, ge=1, description="explain only the first so many pairs")
    max_words: Count = Field(default=50, description="generation stops at the end of a sentence within this many words")
    seed: Annotated[int, Field(ge=0)] = 0
    compute: BaselineCompute = BaselineCompute()

    def training_identity(self) -> dict[str, Any]:
        """What determines the trained system, as opposed to what is asked of it afterwards."""
        return {k: v for k, v in self.identity().items() if k not in ("split", "limit", "max_words")}

    @model_validator(mode="after")
    def _heads_share_the_width(self):
        if self.hidden % (2 * self.heads):
            raise ValueError(
                f"hidden = {self.hidden} must be an even multiple of heads = {self.heads}; change one of them"
            )
        return self
