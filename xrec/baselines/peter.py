"""PETER and PETER+: a small transformer whose first two positions are the user and the item.

Li, Zhang, Chen 2021, "Personalized Transformer for Explainable Recommendation" (ACL; arXiv 2105.11601). PETER+ has a
feature of the pair before the text; which one is `features.py`'s business.
Shapes: B rows, S = 2 or 3 positions before the text, T tokens, H hidden, D heads, V vocabulary.
"""

import math

import torch
from torch import nn

from xrec.baselines.corpus import MAX_TOKENS, Batch
from xrec.baselines.model import RATING_WEIGHT, ExplanationModel, Shape, rating_loss, text_loss
from xrec.baselines.nodes import NodeEmbedding
from xrec.explainer.model import IGNORED

Cache = list[tuple[torch.Tensor, torch.Tensor]]


class Peter(ExplanationModel):
    """PETER; with `feature`, PETER+.

    Args:
        shape: sizes; without `ratings` the rating is not predicted.
        feature: whether a feature stands before the text. Its tokens share a position, as the mean of their
            embeddings: the paper's features are single words.
    """

    def __init__(self, shape: Shape, feature: bool = False):
        super().__init__()
        hidden = shape.hidden
        self.users = NodeEmbedding(shape.users, shape.known_users, hidden)
        self.items = NodeEmbedding(shape.items, shape.known_items, hidden)
        self.words = nn.Embedding(shape.vocabulary, hidden)
        nn.init.uniform_(self.words.weight, -0.1, 0.1)
        self.places: torch.Tensor
        self.register_buffer("places", sinusoids(MAX_TOKENS + 4, hidden), persistent=False)
        self.blocks = nn.ModuleList(Block(hidden, shape.heads, shape.dropout) for _ in range(shape.layers))
        self.output = nn.Linear(hidden, shape.vocabulary)
        nn.init.uniform_(self.output.weight, -0.1, 0.1)
        nn.init.zeros_(self.output.bias)
        self.ratings = shape.ratings
        if shape.ratings:
            self.rating = nn.Sequential(nn.Linear(hidden, hidden), nn.Sigmoid(), nn.Linear(hidden, 1))
        self.dropout = nn.Dropout(shape.dropout)
        self.feature = feature

    def losses(self, batch: Batch) -> dict[str, torch.Tensor]:
        """Text, plus the text's words predicted all at once where the item stands, plus the rating where the user does.

        The paper's weights: 1 for the first two, `RATING_WEIGHT` for the rating's squared error (Eq. 12).
        """
        states = self._run(torch.cat([self._before(batch), self._embed(batch.inputs)], 1))
        first = states.shape[1] - batch.inputs.shape[1]
        text = text_loss(self.output(self.dropout(states[:, first:])), batch.labels)
        context = self._context_loss(self.output(self.dropout(states[:, 1])), batch)
        losses = {"total": text + context, "text": text, "context": context}
        if self.ratings:
            error = rating_loss(self.ratings.mean + self.rating(states[:, 0]).squeeze(1), batch.rating)
            if error is not None:
                losses |= {"rating": error, "total": losses["total"] + RATING_WEIGHT * error}
        return losses

    def begin(self, batch: Batch) -> tuple[torch.Tensor, Cache]:
        cache: Cache = []
        states = self._run(torch.cat([self._before(batch), self._embed(batch.inputs[:, :1])], 1), cache)
        return self.output(states[:, -1]), cache

    def advance(self, tokens: torch.Tensor, state: Cache) -> tuple[torch.Tensor, Cache]:
        states = self._run(self._embed(tokens.unsqueeze(1)), state)
        return self.output(states[:, -1]), state

    def _embed(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.words(tokens)

    def _before(self, batch: Batch) -> torch.Tensor:
        """`[B, S, H]`, what stands before the text."""
        before = [self.users(batch.user), self.items(batch.item)]
        if self.feature:
            mask = batch.feature_mask.unsqueeze(-1).float()
            before.append((self._embed(batch.feature) * mask).sum(1) / mask.sum(1).clamp(min=1))
        return torch.stack(before, 1)

    def _run(self, embedded: torch.Tensor, cache: Cache | None = None) -> torch.Tensor:
        """States `[B, T, H]` of new positions `[B, T, H]`; a cache that isn't empty holds all earlier ones."""
        done = cache[0][0].shape[2] if cache else 0
        new = embedded.shape[1]
        states = self.dropout(embedded * math.sqrt(embedded.shape[-1]) + self.places[done : done + new])
        mask = peter_mask(done + new).to(states.device)[done:]
        for number, block in enumerate(self.blocks):
            earlier = cache[number] if cache is not None and number < len(cache) else None
            states, kept = block(states, mask, earlier)
            if cache is not None:
                cache[number : number + 1] = [kept]
        return states

    def _context_loss(self, logits: torch.Tensor, batch: Batch) -> torch.Tensor:
        """Mean negative log-likelihood of the text's tokens, without its end, under one `[B, V]` distribution a row."""
        ended = torch.cat([batch.labels[:, 1:], torch.full_like(batch.labels[:, :1], IGNORED)], 1) == IGNORED
        words = batch.labels.masked_fill(ended, IGNORED)
        chosen = words.clamp(min=0)
        likelihood = logits.float().log_softmax(-1).gather(1, chosen).masked_fill(words == IGNORED, 0.0)
        return -likelihood.sum() / (words != IGNORED).sum().clamp(min=1)


class Block(nn.Module):
    """A transformer layer, normalised after each sum, as the paper's; it can go on from cached keys and values.

    Args:
        hidden, heads, dropout: sizes; the feed-forward layer is twice as wide.
    """

    def __init__(self, hidden: int, heads: int, dropout: float):
        super().__init__()
        self.heads, self.rate = heads, dropout
        self.projection = nn.Linear(hidden, 3 * hidden)
        self.merge = nn.Linear(hidden, hidden)
        self.widen, self.narrow = nn.Linear(hidden, 2 * hidden), nn.Linear(2 * hidden, hidden)
        self.norms = nn.ModuleList(nn.LayerNorm(hidden) for _ in range(2))
        self.dropout = nn.Dropout(dropout)

    def forward(
        self, states: torch.Tensor, mask: torch.Tensor, earlier: tuple[torch.Tensor, torch.Tensor] | None = None
    ) -> tuple[torch.Tensor, tuple[torch.Tensor, torch.Tensor]]:
        """New states of `[B, T, H]`, and the keys and values `[B, D, E + T, H / D]` of E earlier positions and these.

        Args:
            mask: `[T, E + T]` bool, who may be attended to.
            earlier: keys and values of the E earlier positions.
        """
        rows, new, hidden = states.shape
        parts = self.projection(states).view(rows, new, 3, self.heads, hidden // self.heads)
        query, key, value = parts.permute(2, 0, 3, 1, 4)
        if earlier is not None:
            key, value = torch.cat([earlier[0], key], 2), torch.cat([earlier[1], value], 2)
        rate = self.rate if self.training else 0.0
        attended = nn.functional.scaled_dot_product_attention(query, key, value, mask, dropout_p=rate)
        attended = attended.transpose(1, 2).reshape(rows, new, hidden)
        states = self.norms[0](states + self.dropout(self.merge(attended)))
        inner = self.narrow(self.dropout(self.widen(states).relu()))
        return self.norms[1](states + self.dropout(inner)), (key, value)


def peter_mask(positions: int) -> torch.Tensor:
    """`[P, P]` bool: each position sees those before it and itself, and the user (0) also sees the item (1)."""
    mask = torch.ones(positions, positions, dtype=torch.bool).tril()
    mask[0, 1:2] = True
    return mask


def sinusoids(positions: int, width: int) -> torch.Tensor:
    """`[P, H]` position encodings (Vaswani et al. 2017)."""
    rates = torch.exp(torch.arange(0, width, 2) * (-math.log(10000.0) / width))
    angles = torch.arange(positions).unsqueeze(1) * rates
    return torch.stack([angles.sin(), angles.cos()], -1).flatten(1)
