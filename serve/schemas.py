"""What clients send and get, as the API's OpenAPI document shows it."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

Id = Annotated[str, Field(min_length=1, max_length=512, description="an id of the dataset's source")]
Text = Annotated[str, Field(max_length=100_000)]
Ids = Annotated[list[Id], Field(min_length=1, max_length=100_000)]
Dataset = Annotated[str | None, Field(max_length=64, description="name of a dataset; default: the first")]
SignalField = Annotated[
    Literal["true", "average", "off"],
    Field(description="the collaborative signal: the user's own, the average user's, or none"),
]


class Strict(BaseModel):
    """A request body: unknown fields are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class NewItem(Strict):
    """An item that the dataset does not know."""

    title: Annotated[str, Field(max_length=10_000)] = ""
    interactions: Ids = Field(description="ids of known users who interacted with it")
    profile: Text | None = None


class Pair(Strict):
    """A user (known, or new and given by interactions) and an item (known or new)."""

    model_config = ConfigDict(
        json_schema_extra={
            "allOf": [
                {"oneOf": [{"required": ["user_id"]}, {"required": ["interactions"]}]},
                {"oneOf": [{"required": ["item_id"]}, {"required": ["item"]}]},
            ],
            "examples": [{"user_id": "user-000", "item_id": "item-000"}],
        }
    )

    user_id: Id | None = None
    interactions: Ids | None = Field(
        default=None, description="instead of user_id: ids of known items that a new user interacted with"
    )
    user_profile: Text | None = Field(default=None, description="of a new user, where there is one")
    item_id: Id | None = None
    item: NewItem | None = Field(default=None, description="instead of item_id: a new item")

    @model_validator(mode="after")
    def _one_of_each(self):
        if (self.user_id is None) == (self.interactions is None):
            raise ValueError("give either user_id or interactions (of a new user)")
        if self.user_profile is not None and self.user_id is not None:
            raise ValueError("user_profile is for a new user; leave it out, or give interactions instead of user_id")
        if (self.item_id is None) == (self.item is None):
            raise ValueError("give either item_id or item (a new one)")
        return self


class Generation(Strict):
    """How to write; what is left out is the server's default."""

    max_words: Annotated[int, Field(ge=1)] = Field(
        default=50, description="generation stops at the end of a sentence within this many words"
    )
    max_new_tokens: Annotated[int, Field(ge=1)] = 128
    temperature: Annotated[float, Field(ge=0, le=10)] = Field(default=0.0, description="0: greedy")
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    seed: Annotated[int, Field(ge=0, lt=2**53)] = 0
    deadline_seconds: Annotated[float, Field(gt=0)] | None = Field(
        default=None, description="the answer is 504 after so long; default and largest: the server's"
    )


class ExplanationsRequest(Generation):
    """Pairs to explain."""

    dataset: Dataset = None
    pairs: Annotated[list[Pair], Field(min_length=1)]
    signal: SignalField = "true"
    evidence: bool = Field(default=False, description="also say what stands behind each explanation")
    stream: bool = Field(default=False, description="server-sent events instead of one JSON answer")


class RecommendationsRequest(Generation):
    """Recommendations for a new user."""

    dataset: Dataset = None
    interactions: Ids = Field(description="ids of known items that the new user interacted with")
    user_profile: Text | None = None
    k: Annotated[int, Field(ge=1)] = 10
    explain: bool = False
    signal: SignalField = "true"
    evidence: bool = False
    stream: bool = False


class ItemReference(BaseModel):
    item_id: str
    title: str


class SimilarUserRow(BaseModel):
    user_id: str
    similarity: float = Field(description="cosine of the two users' embeddings")
    shared_items: list[ItemReference]


class HistoryRow(ItemReference):
    similarity: float = Field(description="cosine of this item's embedding and the explained item's")


class SignalEffectRow(BaseModel):
    """The same request with the average user's vector."""

    explanation: str
    changed: bool
    nats_per_token: float = Field(
        description="how much likelier a token of the explanation is with the user's own vector, on average"
    )


class EvidenceRow(BaseModel):
    """What stands behind an explanation."""

    score: float = Field(description="inner product of the two embeddings")
    similar_users: list[SimilarUserRow] = Field(description="those who chose the item and are nearest to the user")
    history: list[HistoryRow] = Field(description="the user's own items nearest to the item")
    signal_effect: SignalEffectRow | None = None


class ExplanationRow(BaseModel):
    user_id: str | None
    item_id: str | None
    title: str
    explanation: str
    finish_reason: Literal["stop", "sentence", "length"]
    tokens: int
    cached: bool = Field(description="whether the server had the answer")
    cold_start: bool = Field(description="whether the user or the item is new")
    signal: SignalField
    evidence: EvidenceRow | None = None


class Usage(BaseModel):
    prompt_tokens: int = 0
    completion_tokens: int = 0
    total_tokens: int = 0


class ExplanationsResponse(BaseModel):
    id: str
    dataset: str
    snapshot: str
    adapter_hash: str
    explanations: list[ExplanationRow]
    usage: Usage


class RecommendationRow(BaseModel):
    rank: int
    item_id: str
    title: str
    score: float
    explanation: str | None = None
    finish_reason: Literal["stop", "sentence", "length"] | None = None
    tokens: int | None = None
    cached: bool | None = None
    evidence: EvidenceRow | None = None


class RecommendationsResponse(BaseModel):
    id: str
    dataset: str
    snapshot: str
    user_id: str | None
    recommendations: list[RecommendationRow]
    usage: Usage


class UserRow(BaseModel):
    user_id: str
    interactions: int


class UsersResponse(BaseModel):
    dataset: str
    users: list[UserRow]


class UserResponse(BaseModel):
    dataset: str
    user_id: str
    profile: str | None
    zero_shot: bool
    history: list[ItemReference]


class ItemRowResponse(ItemReference):
    interactions: int


class ItemsResponse(BaseModel):
    dataset: str
    items: list[ItemRowResponse]


class ModelRow(BaseModel):
    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str = "xrec"
    snapshot: str
    adapter_hash: str
    backbone: str
    users: int
    items: int
    loaded_at: str
    error: str | None = Field(description="why a newer snapshot is not served")


class ModelsResponse(BaseModel):
    object: Literal["list"] = "list"
    data: list[ModelRow]


class ErrorBody(BaseModel):
    code: str
    message: str
    field: str | None = None
    request_id: str | None = None
    type: str = Field(default="invalid_request_error", description="the error's class, as OpenAI's clients read it")


class ErrorResponse(BaseModel):
    error: ErrorBody
