"""How probable the true explanations are under the tuned model: negative log-likelihood per token, and perplexity.

The causal check rests on it: the same references are scored with the pair's own embeddings (`true`), with embeddings
shuffled among users and items (`shuffled`), and with none (`off`). All token counts are equal, so the differences are
paired. The model itself is `xrec.explainer`'s business.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from xrec.evaluation.bootstrap import Interval, ratio_intervals


class LikelihoodModel(Protocol):
    """Anything that scores reference texts of pairs; `xrec.explainer.explain.Explainer` is one."""

    def negative_log_likelihood(
        self, pairs: list[tuple[int, int]], texts: list[str], signal: Any
    ) -> tuple[np.ndarray, np.ndarray]:
        """Summed negative log-likelihood (nats) and number of tokens of each text, each `[n]`."""
        ...


@dataclass(frozen=True)
class Likelihood:
    """Negative log-likelihoods of the same n references under several signals.

    Attributes:
        nll: signal -> `[n]` float64, nats, summed over a reference's tokens (end of text included).
        tokens: `[n]` int64.
    """

    nll: dict[str, np.ndarray]
    tokens: np.ndarray

    def intervals(self, resamples: int, seed: int) -> tuple[dict[str, Interval], dict[str, Interval]]:
        """Nats per token of each signal, and by how much each other signal is worse than `true` (paired).

        Returns:
            signal -> interval, and other signal -> interval of (other - true): positive means that the pair's own
            embeddings make the reference more probable.
        """
        signals = list(self.nll)
        others = [s for s in signals if s != "true"]
        columns = [self.nll[s] for s in signals] + [self.nll[s] - self.nll["true"] for s in others]
        tokens = np.repeat(self.tokens[:, None], len(columns), axis=1)
        found = ratio_intervals(np.stack(columns, axis=1), tokens, resamples, seed)
        return dict(zip(signals, found, strict=False)), dict(zip(others, found[len(signals) :], strict=True))


def reference_likelihood(
    model: LikelihoodModel,
    pairs: Sequence[tuple[int, int]],
    texts: Sequence[str],
    signals: Iterable[str] = ("true", "shuffled", "off"),
    batch_size: int = 256,
    progress=None,
) -> Likelihood:
    """Score reference texts under each signal, a batch at a time.

    Args:
        model: the tuned model.
        pairs: n (user, item) indices.
        texts: their reference explanations.
        signals: which embeddings to use.
        batch_size: references handed to the model at once.
        progress: called with the number of references done after each batch.

    Raises:
        ValueError: no pair, or a model that counts other tokens for one signal than for another.
    """
    if not pairs or len(pairs) != len(texts):
        raise ValueError(f"likelihood: {len(pairs)} pairs and {len(texts)} texts; give as many texts as pairs, one up")
    nll, tokens = {}, None
    for signal in signals:
        parts = []
        for start, stop in _batches(len(pairs), batch_size):
            parts.append(model.negative_log_likelihood(list(pairs[start:stop]), list(texts[start:stop]), signal))
            if progress is not None:
                progress(stop - start)
        nll[signal], counted = (np.concatenate([np.asarray(part[k]) for part in parts]) for k in (0, 1))
        if tokens is not None and (counted != tokens).any():
            raise ValueError(f"likelihood: signal {signal!r} has other token counts than {next(iter(nll))!r}")
        tokens = counted
    if tokens is None:
        raise ValueError("likelihood: signals is empty; name at least 'true'")
    return Likelihood({s: np.asarray(v, np.float64) for s, v in nll.items()}, tokens)


def _batches(total: int, size: int) -> Iterator[tuple[int, int]]:
    return ((start, min(start + size, total)) for start in range(0, total, size))
