"""Settings of the server: what it serves, how wide, and what it protects itself against; `build_app` takes them."""

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from xrec.config.base import Accelerator, Count, Gibibytes, Rate, Section
from xrec.config.explainer import ExplainCompute, ExplainConfig

Seconds = Annotated[float, Field(gt=0)]
_NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$"


class ServeReplicas(Section):
    """How many processes a deployment has, and what each takes."""

    replicas: tuple[Count, Count] = Field(
        default=(1, 1), description="smallest and largest number; between them Ray Serve follows the load"
    )
    cpus: Annotated[float, Field(ge=0)] = Field(default=0.5, description="logical CPUs of a replica")
    memory: Gibibytes | None = Field(default=None, description="GiB that a replica reserves; default: none")
    target_ongoing_requests: Rate = Field(default=8, description="requests a replica that the number is steered to")
    max_ongoing_requests: Count = Field(default=256, description="requests that a replica has in hand at once")
    max_queued_requests: Count = Field(
        default=256, description="requests that a caller lets wait for a replica before it answers 503"
    )
    drain_seconds: Seconds = Field(default=60, description="what a replica that is to end gets to finish its requests")

    @model_validator(mode="after")
    def _bounds(self):
        if self.replicas[1] < self.replicas[0]:
            raise ValueError(f"replicas = {list(self.replicas)}: the largest number is below the smallest; raise it")
        return self


class LookupReplicas(ServeReplicas):
    """The deployment that holds embeddings and profiles."""

    refresh_seconds: Seconds = Field(default=10, description="seconds between looks for a new snapshot")


class ExplainerReplicas(ServeReplicas):
    """The deployment that holds the language model."""

    cpus: Annotated[float, Field(ge=0)] = 1
    gpus: Annotated[float, Field(ge=0)] = Field(default=0, description="GPUs of a replica; a part of one is shared")
    accelerator_type: Accelerator | None = Field(
        default=None, description="kind of GPU of the replicas' nodes, such as A100; default: any"
    )
    threads: int | None = Field(default=None, ge=1, description="CPU threads; default: the machine's cores")
    engine: Literal["auto", "vllm", "hf"] = Field(
        default="auto", description="auto: vllm where a replica has a GPU and vLLM is installed and runs the backbone"
    )
    batch_size: Count = Field(default=32, description="for engine hf: explanations written together")
    tensor_parallel_size: Count = Field(default=1, description="for engine vllm: workers that share each layer")
    pipeline_parallel_size: Count = Field(default=1, description="for engine vllm: stages the layers are split into")
    engine_arguments: dict[str, Any] = Field(default={}, description="for engine vllm: further engine arguments")
    engine_environment: dict[str, str] = Field(default={}, description="environment variables of a replica")

    def explain_config(self) -> ExplainConfig:
        """The same settings as those of the batch stage, which know what fits together."""
        compute = ExplainCompute(
            gpus_per_actor=self.gpus,
            batch_size=self.batch_size,
            tensor_parallel_size=self.tensor_parallel_size,
            pipeline_parallel_size=self.pipeline_parallel_size,
            engine_arguments=self.engine_arguments,
        )
        return ExplainConfig(engine=self.engine, compute=compute)

    @model_validator(mode="after")
    def _fits(self):
        self.explain_config()
        return self


class ServeLimits(Section):
    """What one request, one caller and all callers together may ask for."""

    pairs: Count = Field(default=64, description="pairs, or recommendations, a request")
    interactions: Count = Field(default=1000, description="interactions of a new user or item")
    text_characters: Count = Field(default=8000, description="characters of a new profile or title")
    body_bytes: Count = Field(default=1_000_000, description="a larger body is refused with 413")
    words: Count = Field(default=50, description="largest max_words that a request may ask for")
    new_tokens: Count = Field(default=256, description="largest max_new_tokens that a request may ask for")
    in_flight: Count = Field(
        default=256, description="pairs that an ingress replica has in hand; a request beyond them is refused with 503"
    )
    deadline_seconds: Seconds = Field(default=60, description="longest time to answer; a request may ask for less")
    retry_after_seconds: Count = Field(default=1, description="what a refused client is told to wait")
    rate: str | None = Field(
        default=None, description="requests a key (an address, where there are no keys), such as `600/minute`"
    )
    rate_storage: str = Field(
        default="memory://",
        description="where rates are counted; memory is an ingress replica's own, redis://HOST:PORT is shared",
    )

    @model_validator(mode="after")
    def _a_request_fits(self):
        if self.pairs > self.in_flight:
            raise ValueError(
                f"pairs = {self.pairs} is above in_flight = {self.in_flight}: the largest request would never be "
                "admitted; raise in_flight, or lower pairs"
            )
        return self

    @field_validator("rate")
    @classmethod
    def _is_a_rate(cls, value: str | None) -> str | None:
        import limits

        if value is not None:
            try:
                limits.parse(value)
            except ValueError as error:
                raise ValueError(f"rate = {value!r} is not a rate such as 600/minute or 10/second: {error}") from error
        return value


class ServeCache(Section):
    """Answers kept in each ingress replica."""

    entries: Annotated[int, Field(ge=0)] = Field(default=0, description="explanations kept; 0: none")
    seconds: Seconds = Field(default=3600, description="how long")


class ServeConfig(Section):
    """The server of live explanations."""

    datasets: dict[Annotated[str, Field(pattern=_NAME)], str] = Field(
        default={},
        description="name: workspace (folder or URI) with a snapshot; the first is the default",
    )
    lookup: LookupReplicas = LookupReplicas()
    explainer: ExplainerReplicas = ExplainerReplicas()
    ingress: ServeReplicas = ServeReplicas()
    limits: ServeLimits = ServeLimits()
    cache: ServeCache = ServeCache()
    api_keys_file: str | None = Field(
        default=None, description="a key a line, `name:key`; besides those in the environment's XREC_API_KEYS"
    )
    require_key: bool = Field(default=False, description="refuse to start where no key is given")
    cors_origins: tuple[str, ...] = Field(default=(), description="origins whose pages may call; none by default")
    allowed_hosts: tuple[str, ...] = Field(default=("*",), description="names by which the server may be called")
    page: bool = Field(default=True, description="serve the web page and the page of the API's documentation")

    @field_validator("api_keys_file")
    @classmethod
    def _absolute(cls, value: str | None) -> str | None:
        # Replicas run in folders of their own.
        return None if value is None else str(Path(value).resolve())
