"""The adapter's starting point: each embedding put into the words of its node's training texts.

Before any step through the language model, a ridge regression sends the embedding of a user or item to the mean input
embedding of the words that set its training texts apart. It costs seconds, and the model starts from vectors that it
can already read. The warm-up that writes whole titles and profiles, and the tuning after it, are
`tuning.py`'s business; which words are typical is decided in `backbone.py`.

Shapes: N nodes, D embedding width, V vocabulary, H hidden size.
"""

from collections.abc import Sequence
from typing import Any

import torch
from sklearn.linear_model import RidgeCV

from xrec.explainer.adapter import MoEAdapter, XRecAdapter
from xrec.explainer.backbone_corpus import node_texts, typical_words
from xrec.explainer.pairs import PairTexts

_PENALTIES = tuple(10.0**e for e in range(6))
_SHIFT = 8.0
_LEAST_NODES = 20


def align_with_words(
    adapter: XRecAdapter,
    embeddings: dict[str, torch.Tensor],
    pairs: Sequence[tuple[int, int, str]],
    texts: PairTexts,
    tokenizer: Any,
    table: torch.Tensor,
    profiles: bool,
    seed: int,
) -> dict[str, float]:
    """Fit both adapters, in place, to the words of their nodes' texts.

    Args:
        adapter: untrained, its normalisation set.
        embeddings: `user` `[N, D]` and `item` `[M, D]`, all nodes.
        pairs: (user, item, explanation) of training pairs; only their nodes take part.
        texts: titles and profiles.
        tokenizer: the backbone's.
        table: `[V, H]`, the backbone's input embeddings, on the CPU.
        profiles: whether profiles and titles count among a node's texts, beside its explanations.
        seed: of the experts' shifts.

    Returns:
        `align/<side>/explained`: for each side the share of the variance of word vectors that the embeddings explain,
        each node left out in turn; 0 is no better than the mean. A side with fewer than 20 nodes is left as it is.
    """
    figures = {}
    for side, of_node in node_texts(pairs, texts, profiles).items():
        words = {node: ids for node, ids in typical_words(of_node, tokenizer).items() if ids}
        if len(words) < _LEAST_NODES:
            continue
        targets = torch.stack([torch.stack([table[w].mean(0) for w in ids]).mean(0) for ids in words.values()]).float()
        inputs = embeddings[side][list(words)].float()
        figures[f"align/{side}/explained"] = _fit(getattr(adapter, side), inputs, targets, seed)
    return figures


def _fit(mixture: MoEAdapter, inputs: torch.Tensor, targets: torch.Tensor, seed: int) -> float:
    """Make the mixture compute the ridge regression of targets on inputs, with the penalty of least held-out error."""
    x = ((inputs - mixture.mean) * mixture.scale).double().numpy()
    y = targets.double().numpy()
    regression = RidgeCV(alphas=_PENALTIES).fit(x, y)
    coefficients: Any = regression.coef_
    slope, constant = torch.from_numpy(coefficients.T), torch.from_numpy(regression.intercept_)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        mixture.expert_weight.copy_(slope)
        mixture.expert_shift.zero_()
        paired = len(mixture.expert_shift) // 2 * 2
        for expert in range(0, paired, 2):
            # An expert has no constant term, but W (x - b) with W = slope + v c and v b = -1 has: c + slope (x - b) +
            # c (v x). In a second expert with -b and -v the unwanted parts have the other sign, and equal gates cancel
            # them.
            direction = torch.randn(x.shape[1], generator=generator, dtype=torch.double)
            shift = direction / direction.norm() * _SHIFT
            for sign, which in ((1.0, expert), (-1.0, expert + 1)):
                share = len(mixture.expert_shift) / paired
                mixture.expert_shift[which] = sign * shift
                mixture.expert_weight[which] -= torch.outer(sign * shift / _SHIFT**2, constant) * share
    return float(1.0 + regression.best_score_ / y.var(0).mean())
