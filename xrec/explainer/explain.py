"""From pairs of users and items to explanations: embeddings, adapter, prompt and engine put together.

`Explainer` is an ordinary class that a notebook calls, Ray Data maps over batches, and a server holds. Where and how
wide it runs is not its business. Shapes: N users, M items, D embedding width.
"""

import hashlib
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal

import numpy as np
import torch

from xrec.config import ExplainConfig, PromptConfig
from xrec.embeddings import Embeddings
from xrec.explainer.adapter import XRecAdapter
from xrec.explainer.engine import Engine, Request, Sampling
from xrec.explainer.generation import HuggingFaceEngine
from xrec.explainer.model import backbone_hash, load_backbone, resolve_device
from xrec.explainer.pairs import PairTexts
from xrec.explainer.prompt import PromptBuilder
from xrec.fingerprint import hash_of
from xrec.workspace import Workspace, WorkspaceError

Signal = Literal["true", "shuffled", "off"]
Pair = tuple[int, int]


class Explainer:
    """Explains pairs given by index.

    Args:
        engine: runs the language model.
        adapter: tuned for that model.
        prompts: the template the adapter was tuned with.
        user_embeddings, item_embeddings: `[N, D]` and `[M, D]`, layers averaged.
        texts: titles and profiles.
        sampling: how to generate; the seed is combined with each pair.
        adapter_hash: written into every row.
        shuffle_seed: fixes the permutation behind the signal `shuffled`.
    """

    def __init__(
        self,
        engine: Engine,
        adapter: XRecAdapter,
        prompts: PromptBuilder,
        user_embeddings: torch.Tensor,
        item_embeddings: torch.Tensor,
        texts: PairTexts,
        sampling: Sampling | None = None,
        adapter_hash: str = "",
        shuffle_seed: int = 0,
    ):
        self.engine, self.adapter, self.prompts, self.texts = engine, adapter.eval(), prompts, texts
        self.embeddings = {"user": user_embeddings, "item": item_embeddings}
        self.sampling = sampling or Sampling()
        self.adapter_hash = adapter_hash
        self.permutations = {
            side: derangement(len(values), shuffle_seed + offset)
            for offset, (side, values) in enumerate(self.embeddings.items())
        }

    @classmethod
    def from_workspace(
        cls, workspace: Workspace, config: ExplainConfig | None = None, device: str = "auto"
    ) -> "Explainer":
        """Load what `xrec embed` and `xrec tune` left in a workspace.

        Args:
            workspace: with the stages preprocess, embed and tune finished.
            config: generation settings.
            device: `auto`, `cpu`, `cuda` or `cuda:N`.

        Raises:
            WorkspaceError: a stage is missing, or the adapter was tuned for another backbone or prompt template.
        """
        config = config or ExplainConfig()
        tuned = workspace.manifest("tune")["fingerprint"]["config"]
        with workspace.local("tune", "adapter") as folder:
            adapter = XRecAdapter.from_pretrained(folder)
            adapter_hash = hashlib.sha256((folder / "adapter.safetensors").read_bytes()).hexdigest()
        backbone, tokenizer = load_workspace_backbone(workspace, tuned["backbone"], adapter, resolve_device(device))
        prompts = PromptBuilder(tokenizer, PromptConfig(**adapter.spec.prompt))
        if adapter.spec.prompt_hash and prompts.hash != adapter.spec.prompt_hash:
            raise WorkspaceError(
                "the adapter was tuned with another prompt template; tune it again with `xrec tune --force`"
            )
        injection: Any = adapter.spec.injection
        engine = HuggingFaceEngine(
            backbone, tokenizer, injection, adapter.spec.input_replacement, config.compute.batch_size
        )
        with workspace.local("embed", "embeddings.safetensors") as path:
            embeddings = Embeddings.load(path)
        sampling = Sampling(config.max_words, config.max_new_tokens, config.temperature, config.top_p, config.seed)
        return cls(
            engine,
            adapter,
            prompts,
            embeddings.user_mean(),
            embeddings.item_mean(),
            PairTexts.load(workspace),
            sampling,
            adapter_hash,
            config.seed,
        )

    def explain(self, pairs: Sequence[Pair], signal: Signal = "true") -> list[dict[str, Any]]:
        """Explain pairs; rows of the table `predictions`, in order.

        A pair with an unknown index becomes a row whose status is `failed` and whose error says why.

        Args:
            pairs: (user, item) indices.
            signal: `true` embeddings, embeddings `shuffled` among users and among items, or `off`.
        """
        errors = [self._problem(pair) for pair in pairs]
        sound = [i for i, error in enumerate(errors) if error is None]
        started = time.perf_counter()
        results = self.engine.generate(self.requests([pairs[i] for i in sound], signal))
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
            rows[i] |= {"explanation": result.text, "finish_reason": result.finish_reason, "status": "ok"}
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

    @torch.inference_mode()
    def requests(self, pairs: Sequence[Pair], signal: Signal = "true") -> list[Request]:
        """What the engine is asked for each pair."""
        if not pairs:
            return []
        users, items = (
            self._vectors("user", [u for u, _ in pairs], signal),
            self._vectors("item", [i for _, i in pairs], signal),
        )
        requests = []
        for position, (user, item) in enumerate(pairs):
            prompt = self.prompts.explain(
                self.texts.titles[item], self.texts.user_profiles.get(user), self.texts.item_profiles.get(item)
            )
            vectors = (None, None) if users is None or items is None else (users[position], items[position])
            requests.append(
                Request(
                    prompt.token_ids, prompt.user_positions, prompt.item_positions, *vectors, self._sampling(user, item)
                )
            )
        return requests

    def _vectors(self, side: Literal["user", "item"], indices: list[int], signal: Signal) -> torch.Tensor | None:
        if signal == "off":
            return None
        chosen = torch.as_tensor(indices)
        if signal == "shuffled":
            chosen = self.permutations[side][chosen]
        return getattr(self.adapter, side)(self.embeddings[side][chosen]).float()

    def _sampling(self, user: int, item: int) -> Sampling:
        # The same pair draws the same numbers wherever it stands in a batch, so a resumed job agrees with itself.
        base = self.sampling
        if base.temperature == 0:
            return base
        seed = int(hash_of([base.seed, user, item])[:15], 16)
        return replace(base, seed=seed)

    def _problem(self, pair: Pair) -> str | None:
        for side, index in zip(("user", "item"), pair, strict=True):
            known = len(self.embeddings[side])
            if not 0 <= index < known:
                return f"{side} {index} is unknown: the embeddings hold {known} {side}s (0 to {known - 1})"
        return None


def load_workspace_backbone(
    workspace: Workspace, name: str | None, adapter: XRecAdapter | None, device: torch.device | str | None
) -> tuple[Any, Any]:
    """The backbone called `name`, or the workspace's own where it is None, checked against what an adapter expects.

    Raises:
        WorkspaceError: the adapter was tuned for a backbone with another hash.
    """
    dtype = torch.bfloat16 if device is not None and torch.device(device).type == "cuda" else torch.float32
    if name is None:
        with workspace.local("backbone", "model") as folder:
            backbone, tokenizer = load_backbone(str(folder), dtype, device)
            found = backbone_hash(str(folder), backbone.config)
    else:
        backbone, tokenizer = load_backbone(name, dtype, device)
        found = backbone_hash(name, backbone.config)
    if adapter is not None and adapter.spec.backbone_hash not in ("", found):
        raise WorkspaceError(
            f"the adapter was tuned for the backbone {adapter.spec.backbone!r} with hash "
            f"{adapter.spec.backbone_hash[:12]}…, but {name or 'the workspace backbone'} has {found[:12]}…; "
            "tune it again with `xrec tune --force`, or restore that backbone"
        )
    return backbone, tokenizer


def derangement(count: int, seed: int) -> torch.Tensor:
    """A random permutation of `count` indices in which none stays in place (one cycle); `[count]` int64."""
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
    result = torch.empty(count, dtype=torch.long)
    result[order] = order.roll(1)
    return result


def _column(values: list[Any], name: str) -> np.ndarray:
    kinds: dict[str, Any] = {"user": np.int32, "item": np.int32, "tokens": np.int32, "latency": np.float32}
    return np.array(values, dtype=kinds.get(name, object))
