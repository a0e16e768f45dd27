"""What benchmarks of generation share: a random LLaMA with a real tokenizer, and prompts as ragged as published ones.

Texts are of made-up words, frequent and rare ones as in a language. Ids that end or mark a text have zero rows in the
model's head, so that greedy decoding never chooses one: each explanation is as long as it may be.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from xrec.config import PromptConfig
from xrec.explainer.backbone_corpus import train_tokenizer
from xrec.explainer.engine import Request, Sampling
from xrec.explainer.prompt import PromptBuilder

MAX_LENGTH = 512
MAX_WORDS = 50


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


def make_requests(
    tokenizer: Any, hidden: int, users: int, items: int, tokens: int, order: str, seed: int
) -> list[Request]:
    """`items` requests for each of `users`, a user's together; other users, items and texts with every seed.

    Args:
        tokenizer: of the model.
        hidden: H, the width of the vectors.
        users, items: how many, and how many for each.
        tokens: how many are generated for each.
        order: of the prompt, as in `PromptConfig`.
        seed: of texts and vectors.
    """
    prompts = PromptBuilder(tokenizer, PromptConfig(order=order))  # pyright: ignore[reportArgumentType]
    texts, generator = Texts(seed), torch.Generator().manual_seed(seed)
    # A token starts one word at most, so the limit in words is watched but never reached: all lengths stay equal.
    sampling, requests = Sampling(max_words=max(MAX_WORDS, tokens), max_new_tokens=tokens), []
    for _ in range(users):
        profile, user = texts.profile(), torch.randn(hidden, generator=generator)
        for _ in range(items):
            prompt = prompts.explain(texts.title(), profile, texts.profile())
            item = torch.randn(hidden, generator=generator)
            requests.append(
                Request(prompt.token_ids, prompt.user_positions, prompt.item_positions, user, item, sampling)
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
