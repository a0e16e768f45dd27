"""The adapter's starting point: each embedding put into the words of its node's training texts.

Before any step through the language model, a regression teaches the adapter to send the embedding of a user or item to
the mean input embedding of the words that set its training texts apart. It costs seconds, and the model starts from
vectors that it can already read. The warm-up that writes whole titles and profiles, and the tuning after it, are
`tuning.py`'s business; which words are typical is decided in `backbone.py`.

Shapes: N nodes, D embedding width, V vocabulary, H hidden size.
"""

import copy
from collections.abc import Sequence
from typing import Any

import torch

from xrec.explainer.adapter import MoEAdapter, XRecAdapter
from xrec.explainer.backbone import node_texts, typical_words
from xrec.explainer.pairs import PairTexts

_STEPS, _LEARNING_RATE, _WEIGHT_DECAY, _HELD_OUT = 300, 3e-3, 1e-2, 0.1
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
        seed: of the held-out nodes on which the fit stops early.

    Returns:
        `align/<side>/explained`: for each side the share of the variance of held-out nodes' word vectors that the
        embeddings explain; 0 is no better than the mean. A side with fewer than 20 nodes is left as it is.
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
    """Least squares by AdamW over all nodes at once, keeping the step that is best on held-out nodes."""
    order = torch.randperm(len(inputs), generator=torch.Generator().manual_seed(seed))
    held, fitted = order[: max(1, round(_HELD_OUT * len(order)))], order[max(1, round(_HELD_OUT * len(order))) :]
    scale = targets[fitted].square().mean().sqrt().clamp(min=1e-8)
    with torch.no_grad():
        # Start at the targets' own scale: large models' input embeddings are a hundredth of a hidden state.
        mixture.expert_weight.mul_(0.1 * scale / 0.5)
    optimizer = torch.optim.AdamW(mixture.parameters(), lr=_LEARNING_RATE, weight_decay=_WEIGHT_DECAY)
    best, state = float("inf"), copy.deepcopy(mixture.state_dict())
    for _ in range(_STEPS):
        loss = ((mixture(inputs[fitted]) - targets[fitted]) / scale).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        with torch.no_grad():
            held_loss = float(((mixture(inputs[held]) - targets[held]) / scale).square().mean())
        if held_loss < best:
            best, state = held_loss, copy.deepcopy(mixture.state_dict())
    mixture.load_state_dict(state)
    spread = float(((targets[held] - targets[fitted].mean(0)) / scale).square().mean())
    return 1.0 - best / max(spread, 1e-12)
