"""The adapter's starting point: each embedding put into the words of its node's training texts.

Before any step through the language model, a ridge regression sends the embedding of a user or item to what sets the
mean input embedding of its typical words apart from that of all nodes. It costs seconds, and the model starts from
vectors that it can already read. The warm-up that writes whole titles and profiles, and the tuning after it, are in
`tuning.py`; which words are typical is decided in `node_texts.py`.

Shapes: N nodes, D embedding width, V vocabulary, H hidden size.
"""

from collections.abc import Sequence
from typing import Any

import torch
from sklearn.linear_model import RidgeCV

from xrec.explainer.adapter import MoEAdapter, XRecAdapter, rms_of
from xrec.explainer.node_texts import node_texts, typical_words
from xrec.explainer.pairs import PairTexts

_PENALTIES = tuple(10.0**e for e in range(6))
_LEAST_NODES = 20


def align_with_words(
    adapter: XRecAdapter,
    embeddings: dict[str, torch.Tensor],
    pairs: Sequence[tuple[int, int, str]],
    texts: PairTexts,
    tokenizer: Any,
    table: torch.Tensor,
    profiles: bool,
    rms: float,
) -> dict[str, float]:
    """Fit both adapters, in place, to the words of their nodes' texts.

    Args:
        adapter: untrained, its normalisation and output scale set.
        embeddings: `user` `[N, D]` and `item` `[M, D]`, all nodes.
        pairs: (user, item, explanation) of training pairs; only their nodes take part.
        texts: titles and profiles.
        tokenizer: the backbone's.
        table: `[V, H]`, the backbone's input embeddings, on the CPU.
        profiles: whether profiles and titles count among a node's texts, beside its explanations.
        rms: root mean square of the aligned vectors over those nodes, the same as before alignment.

    Returns:
        `align/<side>/explained`: for each side the share of the variance of word vectors that the embeddings explain,
        each node left out in turn; 0 is no better than the mean. A side with fewer than 20 nodes is left as it is.
    """
    metrics = {}
    for side, of_node in node_texts(pairs, texts, profiles).items():
        words = {node: ids for node, ids in typical_words(of_node, tokenizer).items() if ids}
        if len(words) < _LEAST_NODES:
            continue
        targets = torch.stack([torch.stack([table[w].mean(0) for w in ids]).mean(0) for ids in words.values()]).float()
        inputs = embeddings[side][list(words)].float()
        metrics[f"align/{side}/explained"] = _fit(getattr(adapter, side), inputs, targets, rms)
    return metrics


@torch.no_grad()
def _fit(mixture: MoEAdapter, inputs: torch.Tensor, targets: torch.Tensor, rms: float) -> float:
    """Make every expert compute the ridge regression of centred targets on inputs, with the penalty of least held-out
    error, so that the mixture does whatever its gate and `top_k` are.

    The mean of the targets is left out, being the same for all nodes; the shifts stay as they were drawn.
    """
    x = ((inputs - mixture.mean.float()) * mixture.scale.float()).double()
    # In units of the inputs' own spread, so that the penalties mean the same whether inputs are standardised or not.
    unit = float(x.std(correction=0)) or 1.0
    y = targets.double().numpy()
    regression = RidgeCV(alphas=_PENALTIES).fit((x / unit).numpy(), y)
    coefficients: Any = regression.coef_
    slope = torch.from_numpy(coefficients.T).float() / unit
    mixture.expert_weight.copy_(slope)
    found = rms_of(mixture(inputs))
    if found > 0:
        mixture.expert_weight.mul_(rms / found)
    return float(1.0 + regression.best_score_ / y.var(0).mean())
