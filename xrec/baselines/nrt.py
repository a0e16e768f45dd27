"""NRT: a rating and a text from the same user and item, learned together.

Li, Wang, Ren, Bing, Lam 2017, "Neural Rating Regression with Abstractive Tips Generation for Recommendation"
(SIGIR; arXiv 1708.00154). Left out: its third task, the words of the whole review, since the text to be explained here
is all there is. Where the data has no ratings, there is no rating loss and the decoder gets none.
Shapes: B rows, T tokens, H hidden, L layers, V vocabulary.
"""

import torch
from torch import nn

from xrec.baselines.corpus import Batch
from xrec.baselines.model import RATING_WEIGHT, ExplanationModel, Shape, rating_loss, text_loss
from xrec.baselines.nodes import NodeEmbedding

LEVELS = 5


class NRT(ExplanationModel):
    """An MLP predicts the rating; a GRU, started from user, item and predicted rating, writes the text.

    Args:
        shape: sizes; without `ratings` there is no MLP.
    """

    def __init__(self, shape: Shape):
        super().__init__()
        hidden = shape.hidden
        self.users = NodeEmbedding(shape.users, shape.known_users, hidden)
        self.items = NodeEmbedding(shape.items, shape.known_items, hidden)
        self.ratings = shape.ratings
        if shape.ratings:
            inner = [layer for _ in range(shape.layers - 1) for layer in (nn.Linear(hidden, hidden), nn.Sigmoid())]
            self.rating = nn.Sequential(nn.Linear(2 * hidden, hidden), nn.Sigmoid(), *inner, nn.Linear(hidden, 1))
        self.encoder = nn.Linear(2 * hidden + (LEVELS if shape.ratings else 0), shape.layers * hidden)
        self.words = nn.Embedding(shape.vocabulary, hidden)
        between = shape.dropout if shape.layers > 1 else 0.0
        self.decoder = nn.GRU(hidden, hidden, shape.layers, batch_first=True, dropout=between)
        self.output = nn.Linear(hidden, shape.vocabulary)
        self.dropout = nn.Dropout(shape.dropout)
        self.layers = shape.layers

    def losses(self, batch: Batch) -> dict[str, torch.Tensor]:
        """`text` plus `RATING_WEIGHT` times the squared error of the rating, where the data has ratings."""
        memory, rating = self._encode(batch)
        text = text_loss(self._decode(batch.inputs, memory)[0], batch.labels)
        error = rating_loss(rating, batch.rating) if rating is not None else None
        if error is None:
            return {"total": text, "text": text}
        return {"total": text + RATING_WEIGHT * error, "text": text, "rating": error}

    def begin(self, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        memory, _ = self._encode(batch)
        logits, memory = self._decode(batch.inputs[:, :1], memory)
        return logits[:, -1], memory

    def advance(self, tokens: torch.Tensor, state: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        logits, state = self._decode(tokens.unsqueeze(1), state)
        return logits[:, -1], state

    def _encode(self, batch: Batch) -> tuple[torch.Tensor, torch.Tensor | None]:
        """The GRU's first state `[L, B, H]`, and the predicted ratings `[B]`."""
        pair = self.dropout(torch.cat([self.users(batch.user), self.items(batch.item)], 1))
        rating = None
        if self.ratings:
            rating = self.ratings.mean + self.rating(pair).squeeze(1)
            pair = torch.cat([pair, self.levels(rating)], 1)
        start = torch.tanh(self.encoder(pair))
        return start.view(len(start), self.layers, -1).transpose(0, 1).contiguous(), rating

    def levels(self, rating: torch.Tensor) -> torch.Tensor:
        """`[B, LEVELS]` one-hot: the predicted ratings `[B]` rounded to levels between the lowest and the highest."""
        assert self.ratings
        spread = max(self.ratings.high - self.ratings.low, 1e-6)
        level = ((rating.detach() - self.ratings.low) / spread * (LEVELS - 1)).round().clamp(0, LEVELS - 1)
        return nn.functional.one_hot(level.long(), LEVELS).to(rating.dtype)

    def _decode(self, inputs: torch.Tensor, memory: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Logits `[B, T, V]` after tokens `[B, T]`, and the GRU's state after the last."""
        states, memory = self.decoder(self.dropout(self.words(inputs)), memory)
        return self.output(self.dropout(states)), memory
