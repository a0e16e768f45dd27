"""What the local chat server answers: its settings, its faults, and completions made of a prompt's hash."""

import dataclasses
import hashlib
import json
import time
from dataclasses import dataclass, field

from aiohttp import web

# In the order in which a draw is laid out over them. Those of STATUS are error responses, those of CONTENT answers.
STATUS = {
    "429": (429, "rate_limit_exceeded", "Rate limit reached"),
    "500-text": (500, None, "upstream connect error"),
    "500-json": (500, "server_error", "The server had an error"),
    "401": (401, "invalid_api_key", "Incorrect API key provided: {key}"),
    "403": (403, "forbidden", "You are not allowed to use this model"),
    "400": (400, "invalid_value", "Invalid value in the request, sent with {key}"),
    "quota": (429, "insufficient_quota", "You exceeded your current quota"),
    "context-length": (400, "context_length_exceeded", "This model's maximum context length is 8 tokens"),
    "content-filter": (400, "content_filter", "The prompt triggered the content management policy"),
}
TRANSPORT = ("broken-body", "hang", "slow", "disconnect")
CONTENT = ("malformed", "refusal", "refusal-text", "filtered", "too-long", "empty", "cut-off", "fenced")
FAULTS = (*STATUS, *TRANSPORT, *CONTENT)
BATCH = ("row-error", "expired")  # of a batch's rows, beside those of CONTENT
NO_USAGE = "no-usage"  # drawn apart from the others: an answer of any content may lack its usage
_WORDS = (
    *("warm", "quiet", "lively", "honest", "crisp", "gentle", "bright", "rustic"),
    *("modern", "simple", "cosy", "generous", "bold", "fresh", "classic", "calm"),
)


@dataclass
class Settings:
    """What the server does.

    Attributes:
        latency: seconds before each answer.
        seed: of the faults' draws.
        faults: probability by name, of FAULTS, BATCH and NO_USAGE.
        retry_after: seconds that a 429 tells to wait; retry_after_ms: told in the header that counts milliseconds.
        slow_seconds: how long a slow answer trickles.
        max_concurrency: answers in the making at once; further requests queue.
        key: the one that requests must carry, if any.
        models: those that exist; none: every one.
        refuse: names of request fields that are answered with 400.
        keep_prompts: whether GET /prompts has something to show.
        batch_delay: seconds that a batch takes.
    """

    latency: float = 0.0
    seed: int = 0
    faults: dict[str, float] = field(default_factory=dict)
    retry_after: float = 1.0
    retry_after_ms: bool = False
    slow_seconds: float = 60.0
    max_concurrency: int | None = None
    key: str | None = None
    models: tuple[str, ...] = ()
    refuse: tuple[str, ...] = ()
    keep_prompts: bool = False
    batch_delay: float = 0.0

    def __post_init__(self) -> None:
        self.update({"faults": self.faults})

    def update(self, changes: dict) -> None:
        names = {f.name for f in dataclasses.fields(self)}
        if unknown := set(changes) - names:
            raise ValueError(f"unknown settings {sorted(unknown)}; there are {sorted(names)}")
        known = {*FAULTS, *BATCH, NO_USAGE}
        if unknown := set(changes.get("faults", {})) - known:
            raise ValueError(f"unknown faults {sorted(unknown)}; there are {sorted(known)}")
        for name, value in changes.items():
            setattr(self, name, tuple(value) if isinstance(value, list) else value)

    def draw(self, digest: str, sending: int, purpose: str = "fault") -> float:
        """A number in [0, 1) that depends on the seed, the prompt, how often it was sent, and what is decided."""
        key = f"{self.seed}:{digest}:{sending}:{purpose}".encode()
        return int.from_bytes(hashlib.blake2b(key, digest_size=8).digest(), "big") / 2**64

    def fault_of(self, digest: str, sending: int, among: tuple[str, ...] = FAULTS) -> str | None:
        """Which fault a prompt meets when it is sent for the n-th time (from 1), if any."""
        left = self.draw(digest, sending)
        for name in among:
            left -= self.faults.get(name, 0.0)
            if left < 0:
                return name
        return None


def hash_of_prompt(messages: list[dict]) -> str:
    """What identifies a row: its first user message, which a second asking repeats."""
    user = next((m["content"] for m in messages if m["role"] == "user"), "")
    return hashlib.blake2b(user.encode(errors="surrogatepass"), digest_size=8).hexdigest()


def sentence(digest: str, words: int = 12) -> str:
    """The answer to a prompt of that hash, in so many words."""
    chosen = " ".join(_WORDS[int(digest[i % len(digest)], 16)] for i in range(words - 2))
    return f"Answer {digest} {chosen}"


def value(model: str, digest: str, wanted: dict) -> int | bool | None:
    """What a model answers where a schema wants a number or a yes or no, made of the prompt's hash; else None."""
    drawn = int.from_bytes(hashlib.blake2b(f"{model}:{digest}".encode(), digest_size=8).digest(), "big")
    if wanted.get("type") == "integer":
        return wanted["minimum"] + drawn % (wanted["maximum"] - wanted["minimum"] + 1)
    return drawn % 2 == 1 if wanted.get("type") == "boolean" else None


def _content(body: dict, digest: str, fault: str | None) -> tuple[str | None, str | None]:
    """Content and refusal of an answer."""
    schema = (body.get("response_format") or {}).get("json_schema", {}).get("schema")
    name = next(iter(schema["properties"])) if schema else "profile"
    if schema is None and '"explanation"' in body["messages"][0]["content"]:
        name = "explanation"
    text = sentence(digest, 400 if fault == "too-long" else 12)
    made = value(body["model"], digest, schema["properties"][name]) if schema else None
    content = json.dumps({name: "" if fault == "empty" else text if made is None else made})
    if fault == "malformed":
        return f"Here is what I think: {text}", None
    if fault == "refusal":
        return None, "I'm sorry, but I can't help with that."
    if fault == "refusal-text":
        return json.dumps({name: "I'm sorry, but I can't assist with that request."}), None
    if fault == "cut-off":
        return content[: len(content) // 2], None
    if fault == "fenced":
        return f"```json\n{content}\n```", None
    return content, None


def completion(settings: Settings, body: dict, digest: str, sending: int, fault: str | None) -> dict:
    """The completion that a model would have given, or one of those that are of no use."""
    content, refusal = _content(body, digest, fault)
    message = {"role": "assistant", "content": content, "refusal": refusal}
    reason = {"cut-off": "length", "filtered": "content_filter"}.get(fault or "", "stop")
    made = {
        "id": f"chatcmpl-{digest}-{sending}",
        "object": "chat.completion",
        "created": int(time.time()),
        "model": body["model"],
        "choices": [{"index": 0, "message": message, "finish_reason": reason, "logprobs": None}],
    }
    if settings.draw(digest, sending, NO_USAGE) >= settings.faults.get(NO_USAGE, 0.0):
        # A token a word.
        asked = sum(len(m["content"].split()) for m in body["messages"])
        answered = len((content or refusal or "").split())
        made["usage"] = {"prompt_tokens": asked, "completion_tokens": answered, "total_tokens": asked + answered}
    return made


def error_body(code: str, message: str, param: str | None = None) -> dict:
    return {"error": {"message": message, "type": "invalid_request_error", "param": param, "code": code}}


def error_response(status: int, code: str, message: str, param: str | None = None) -> web.Response:
    return web.json_response(error_body(code, message, param), status=status)


def key_of(request: web.Request) -> str:
    """The key that a request carries."""
    return request.headers.get("Authorization", "").removeprefix("Bearer ")
