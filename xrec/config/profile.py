"""Settings of the stage that writes profiles and ground-truth explanations."""

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from xrec.config.base import Accelerator, Amount, Count, Gibibytes, Rate, Section

TextKind = Literal["item_profile", "user_profile", "explanation"]
TEXT_KINDS: tuple[TextKind, ...] = ("item_profile", "user_profile", "explanation")


class Price(Section):
    """What a model costs, in the currency of `spend_cap`."""

    input: Amount = Field(description="for a million tokens of prompt")
    output: Amount = Field(description="for a million tokens of answer")


class WritingPrompts(Section):
    """What the model is told to do, one system instruction a kind of text; None: the ones that come with XRec."""

    item_profile: str | None = Field(default=None, description="instruction for item profiles (paper Eq. 2)")
    user_profile: str | None = Field(default=None, description="instruction for user profiles (paper Eq. 3)")
    explanation: str | None = Field(
        default=None, description="instruction for ground-truth explanations (paper Eq. 14)"
    )


class ProfileCompute(Section):
    base_url: str | None = Field(
        default=None,
        description="endpoint of an OpenAI-compatible server, such as http://HOST:8000/v1; default: OpenAI's",
    )
    api_key_variable: str = Field(
        default="OPENAI_API_KEY",
        description="the environment variable that holds the key; the key itself is never stored",
    )
    actors: tuple[Count, Count] = Field(default=(1, 4), description="smallest and largest number of writing actors")
    cpus_per_actor: Annotated[float, Field(ge=0)] = Field(default=0.25, description="logical CPUs an actor takes")
    gpus_per_actor: Annotated[float, Field(ge=0)] = Field(default=0, description="for backend vllm: GPUs of an engine")
    memory_per_actor: Gibibytes | None = Field(
        default=None, description="GiB that an actor reserves, for backend vllm over all its workers; default: none"
    )
    accelerator_type: Accelerator | None = Field(
        default=None, description="for backend vllm: kind of GPU of the engines' nodes, such as A100; default: any"
    )
    concurrency: Count = Field(default=64, description="requests that an actor has open at once")
    rows_per_block: Count = Field(
        default=32, description="rows a written file, which is also the step of a resumed run"
    )
    requests_per_minute: Rate | None = Field(default=None, description="limit over all actors; default: none")
    tokens_per_minute: Rate | None = Field(
        default=None, description="limit over all actors, on prompts and answers together; default: none"
    )
    request_timeout: Rate = Field(default=60.0, description="seconds that one request may take")
    deadline: Rate = Field(default=300.0, description="seconds that one row may take, with every repetition")
    max_attempts: Count = Field(default=8, description="requests that one row may make, with every repetition")
    prices: dict[str, Price] = Field(default={}, description="price by model name, for costs and the spend cap")
    spend_cap: Rate | None = Field(
        default=None, description="stop before more than this is spent in this workspace; needs a price for the model"
    )
    poll_seconds: Rate = Field(default=30.0, description="for backend batch: how often to ask whether it is done")
    engine: dict[str, Any] = Field(default={}, description="for backend vllm: further engine arguments")
    engine_environment: dict[str, str] = Field(
        default={}, description="for backend vllm: environment variables of the engine's processes"
    )


class ProfileConfig(Section):
    """Item profiles, user profiles and ground-truth explanations, written from the reviews (paper Eq. 2, 3, 14)."""

    backend: Literal["extractive", "openai", "vllm", "batch"] = Field(
        default="extractive",
        description="key phrases without a language model; any OpenAI-compatible endpoint; vLLM inside the job; "
        "OpenAI's Batch API",
    )
    model: str | None = Field(default=None, description="model name at the endpoint, or for vllm a name or folder")
    prompts: WritingPrompts = WritingPrompts()
    max_words: Count = Field(default=50, description="longest text that is accepted, in words")
    reviews_per_item: Annotated[int, Field(ge=0)] = Field(
        default=5, description="training reviews quoted in an item's prompt; 0: its metadata alone"
    )
    items_per_user: Count = Field(default=5, description="training items, with the user's reviews, in a user's prompt")
    review_characters: Count = Field(default=1000, description="a longer review is cut, in prompts")
    explained_pairs: int | None = Field(
        default=None, ge=1, description="ground-truth explanations to write, drawn over all splits; default: every pair"
    )
    max_tokens: Count = Field(default=256, description="longest answer, in tokens")
    temperature: float = Field(default=0.0, ge=0, description="0: greedy")
    structured_output: Literal["json_schema", "json_object", "none"] = Field(
        default="json_schema", description="how the endpoint is asked for JSON; answers are checked in any case"
    )
    tokenizer: str | None = Field(
        default=None,
        description="Hugging Face name or folder that counts tokens in a dry run; default: estimated from characters",
    )
    seed: int = Field(default=0, description="the same seed draws the same reviews and pairs")
    compute: ProfileCompute = ProfileCompute()

    @property
    def price(self) -> Price | None:
        """The model's, where the settings have one."""
        return self.compute.prices.get(self.model or "")

    @model_validator(mode="after")
    def _backend_has_what_it_needs(self):
        if self.backend != "extractive" and not self.model:
            raise ValueError(f"model is not set, and backend = {self.backend} needs one; set profile.model")
        capped = self.compute.spend_cap is not None and self.backend != "extractive"
        if capped and self.model not in self.compute.prices:
            raise ValueError(
                f"compute.spend_cap = {self.compute.spend_cap:g}, but compute.prices has no price for {self.model!r}; "
                "add one (input and output, for a million tokens)"
            )
        return self

    @model_validator(mode="after")
    def _row_outlives_its_request(self):
        if self.compute.deadline < self.compute.request_timeout:
            raise ValueError(
                f"compute.deadline = {self.compute.deadline:g} is below compute.request_timeout = "
                f"{self.compute.request_timeout:g}; a row must be given the time of one request at least"
            )
        return self
