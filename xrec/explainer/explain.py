"""From pairs of users and items to explanations: adapted vectors, prompt and engine put together.

`Explainer` is an ordinary class that a notebook calls, Ray Data maps over batches, and a server holds.
"""

import threading
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from xrec.config import ExplainConfig
from xrec.explainer.engine import Engine, Request, Result, Sampling
from xrec.explainer.engine_choice import open_engine
from xrec.explainer.loading import load_adapter, load_embeddings, prompts_of
from xrec.explainer.pairs import PairTexts
from xrec.explainer.prompt import PromptBuilder
from xrec.explainer.thinking import without_thinking
from xrec.explainer.vectors import SIDES, AdaptedVectors, Signal, VectorSource
from xrec.fingerprint import hash_of
from xrec.workspace import Workspace

Pair = tuple[int, int]


class Explainer:
    """Explains pairs given by index.

    May be called from several threads at once where the engine may.

    Args:
        engine: runs the language model.
        vectors: the adapted vectors of users and items, for that model.
        prompts: the template the adapter was tuned with.
        texts: titles and profiles.
        sampling: how to generate; the seed is combined with each pair.
        adapter_hash: written into every row.
    """

    def __init__(
        self,
        engine: Engine,
        vectors: VectorSource,
        prompts: PromptBuilder,
        texts: PairTexts,
        sampling: Sampling | None = None,
        adapter_hash: str = "",
    ):
        self.engine, self.vectors, self.prompts, self.texts = engine, vectors, prompts, texts
        self.sampling = sampling or Sampling()
        self.adapter_hash = adapter_hash
        # A tokenizer changes its own settings as it switches between plain text and templates.
        self._tokenizing = threading.Lock()

    @classmethod
    def from_workspace(
        cls,
        workspace: Workspace,
        config: ExplainConfig | None = None,
        device: str = "auto",
        vectors: VectorSource | None = None,
    ) -> "Explainer":
        """Load what `xrec embed` and `xrec tune` left in a workspace.

        Args:
            workspace: with the stages preprocess, embed and tune finished.
            config: generation settings. The engine `auto` is the Hugging Face one here, which starts at once.
            device: `auto`, `cpu`, `cuda` or `cuda:N`.
            vectors: the adapted vectors, where they are written already; default: computed from the embeddings.

        Raises:
            WorkspaceError: a stage is missing, or the adapter was tuned for another backbone or prompt template.
            ConfigError: `config.engine` is vllm, and vLLM is not installed.
            ValueError: the backbone cannot be loaded, or vLLM does not run it.
        """
        config = config or ExplainConfig()
        workspace.manifest("tune")
        adapter, adapter_hash = load_adapter(workspace)
        if vectors is None:
            embeddings = load_embeddings(workspace)
            vectors = AdaptedVectors(adapter, embeddings.user_mean(), embeddings.item_mean(), config.seed)
        engine = open_engine(workspace, config, adapter.spec, device)
        sampling = Sampling(config.max_words, config.max_new_tokens, config.temperature, config.top_p, config.seed)
        prompts = prompts_of(adapter.spec, engine.tokenizer)
        return cls(engine, vectors, prompts, PairTexts.load(workspace), sampling, adapter_hash)

    def close(self) -> None:
        """End the engine's processes, where it has any."""
        self.engine.close()

    def explain(self, pairs: Sequence[Pair], signal: Signal = "true") -> list[dict[str, Any]]:
        """Explain pairs; rows of the table `predictions`, in order.

        A pair with an unknown index becomes a row whose status is `failed` and whose error says why.

        Args:
            pairs: (user, item) indices.
            signal: `true` embeddings, embeddings `shuffled` among users and among items, those of an `other_user`,
                or `off`.
        """
        errors = [self._problem(pair) for pair in pairs]
        sound = [i for i, error in enumerate(errors) if error is None]
        started = time.perf_counter()
        results = self._generate(self.requests([pairs[i] for i in sound], signal))
        latency = (time.perf_counter() - started) / max(1, len(sound))
        rows = [
            {
                "user": user,
                "item": item,
                "signal": signal,
                "explanation": "",
                "finish_reason": None,
                "tokens": 0,
                "latency": 0.0,
                "adapter_hash": self.adapter_hash,
                "status": "failed",
                "error": error,
            }
            for (user, item), error in zip(pairs, errors, strict=True)
        ]
        for i, result in zip(sound, results, strict=True):
            if isinstance(result, str):
                rows[i]["error"] = result
                continue
            # Custom engines may leave a model's thinking in.
            text = without_thinking(result.text)
            rows[i] |= {"explanation": text, "finish_reason": result.finish_reason, "status": "ok"}
            rows[i] |= {"tokens": len(result.token_ids), "latency": latency}
        return rows

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Explain a batch with columns user, item and signal; returns the columns of `predictions`, rows in order."""
        rows: list[dict[str, Any]] = [{}] * len(batch["user"])
        for signal in np.unique(batch["signal"]):
            chosen = np.flatnonzero(batch["signal"] == signal)
            pairs = [(int(batch["user"][i]), int(batch["item"][i])) for i in chosen]
            for i, row in zip(chosen, self.explain(pairs, str(signal)), strict=True):  # pyright: ignore
                rows[i] = row
        return {name: _column([row[name] for row in rows], name) for name in rows[0]}

    def negative_log_likelihood(
        self, pairs: Sequence[Pair], texts: Sequence[str], signal: Signal = "true"
    ) -> tuple[np.ndarray, np.ndarray]:
        """How surprising given texts are as explanations of given pairs.

        Returns:
            For each pair the sum over the text's tokens and the end of sequence, in nats (float64 `[n]`), and the
            number of those tokens (int64 `[n]`).

        Raises:
            ValueError: an index is unknown.
        """
        for pair in pairs:
            problem = self._problem(pair)
            if problem:
                raise ValueError(problem)
        targets = [self.prompts.target(text) for text in texts]
        values = self.engine.logprobs(self.requests(pairs, signal), targets)
        return np.array([-float(v.double().sum()) for v in values]), np.array([len(t) for t in targets])

    def requests(self, pairs: Sequence[Pair], signal: Signal = "true") -> list[Request]:
        """What the engine is asked for each pair."""
        if not pairs:
            return []
        users, items = (
            self.vectors.look_up("user", [u for u, _ in pairs], signal),
            self.vectors.look_up("item", [i for _, i in pairs], signal),
        )
        requests = []
        with self._tokenizing:
            for position, (user, item) in enumerate(pairs):
                prompt = self.prompts.explain(
                    self.texts.titles[item], self.texts.user_profiles.get(user), self.texts.item_profiles.get(item)
                )
                vectors = (None, None) if users is None or items is None else (users[position], items[position])
                places = prompt.token_ids, prompt.user_positions, prompt.item_positions
                requests.append(Request(*places, *vectors, self._sampling(user, item)))
        return requests

    def _generate(self, requests: list[Request]) -> list[Result | str]:
        """Results; for a request that the engine refuses, what is wrong with it.

        An engine refuses before it generates, so halving finds the few bad requests and costs the others no batch.
        """
        try:
            return list(self.engine.generate(requests))
        except ValueError as error:
            if len(requests) == 1:
                return [str(error).removeprefix("request 0: ")]
        half = len(requests) // 2
        return self._generate(requests[:half]) + self._generate(requests[half:])

    def _sampling(self, user: int, item: int) -> Sampling:
        # The same pair draws the same numbers wherever it stands in a batch, so a resumed job agrees with itself.
        base = self.sampling
        if base.temperature == 0:
            return base
        seed = int(hash_of([base.seed, user, item])[:15], 16)
        return replace(base, seed=seed)

    def _problem(self, pair: Pair) -> str | None:
        for side, index in zip(SIDES, pair, strict=True):
            known = self.vectors.counts[side]
            if not 0 <= index < known:
                return f"{side} {index} is unknown: the embeddings hold {known} {side}s (0 to {known - 1})"
        return None


def _column(values: list[Any], name: str) -> np.ndarray:
    kinds: dict[str, Any] = {"user": np.int32, "item": np.int32, "tokens": np.int32, "latency": np.float32}
    return np.array(values, dtype=kinds.get(name, object))
