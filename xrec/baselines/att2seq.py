"""Att2Seq: attributes to a text by an LSTM that attends to them.

Dong, Huang, Wei, Lapata, Zhou, Xu 2017, "Learning to Generate Product Reviews from Attributes" (EACL). The attributes
are the user and the item. The paper's third one, the rating, is left out: of a pair to be explained it is not known.
Shapes: B rows, T tokens, A = 2 attributes, H hidden, L layers, V vocabulary.
"""

import torch
from torch import nn

from xrec.baselines.corpus import Batch
from xrec.baselines.model import ExplanationModel, Shape, text_loss
from xrec.baselines.nodes import NodeEmbedding

State = tuple[torch.Tensor, tuple[torch.Tensor, torch.Tensor]]


class Att2Seq(ExplanationModel):
    """An MLP over the attributes' embeddings starts the LSTM; at each step attention reads the attributes again.

    Args:
        shape: sizes.
    """

    def __init__(self, shape: Shape):
        super().__init__()
        hidden = shape.hidden
        self.users = NodeEmbedding(shape.users, shape.known_users, hidden)
        self.items = NodeEmbedding(shape.items, shape.known_items, hidden)
        self.encoder = nn.Linear(2 * hidden, shape.layers * hidden)
        self.words = nn.Embedding(shape.vocabulary, hidden)
        between = shape.dropout if shape.layers > 1 else 0.0
        self.decoder = nn.LSTM(hidden, hidden, shape.layers, batch_first=True, dropout=between)
        self.score = nn.Linear(2 * hidden, 1)
        self.combine = nn.Linear(2 * hidden, hidden)
        self.output = nn.Linear(hidden, shape.vocabulary)
        self.dropout = nn.Dropout(shape.dropout)
        self.layers = shape.layers

    def losses(self, batch: Batch) -> dict[str, torch.Tensor]:
        attributes, memory = self._encode(batch)
        loss = text_loss(self._decode(batch.inputs, attributes, memory)[0], batch.labels)
        return {"total": loss, "text": loss}

    def begin(self, batch: Batch) -> tuple[torch.Tensor, State]:
        attributes, memory = self._encode(batch)
        logits, memory = self._decode(batch.inputs[:, :1], attributes, memory)
        return logits[:, -1], (attributes, memory)

    def advance(self, tokens: torch.Tensor, state: State) -> tuple[torch.Tensor, State]:
        logits, memory = self._decode(tokens.unsqueeze(1), *state)
        return logits[:, -1], (state[0], memory)

    def _encode(self, batch: Batch) -> State:
        """Attributes `[B, A, H]`, and the LSTM's first hidden and cell state `[L, B, H]` (Eq. 1 and 2 of the paper)."""
        attributes = self.dropout(torch.stack([self.users(batch.user), self.items(batch.item)], 1))
        start = torch.tanh(self.encoder(attributes.flatten(1)))
        hidden = start.view(len(start), self.layers, -1).transpose(0, 1).contiguous()
        return attributes, (hidden, torch.zeros_like(hidden))

    def _decode(
        self, inputs: torch.Tensor, attributes: torch.Tensor, memory: tuple[torch.Tensor, torch.Tensor]
    ) -> tuple[torch.Tensor, tuple[torch.Tensor, torch.Tensor]]:
        """Logits `[B, T, V]` after tokens `[B, T]`, and the LSTM's state after the last."""
        states, memory = self.decoder(self.dropout(self.words(inputs)), memory)
        context = torch.einsum("bta,bah->bth", self.attention(states, attributes), attributes)
        attended = torch.tanh(self.combine(torch.cat([context, states], -1)))
        return self.output(self.dropout(attended)), memory

    def attention(self, states: torch.Tensor, attributes: torch.Tensor) -> torch.Tensor:
        """Weights `[B, T, A]` of attributes `[B, A, H]` at states `[B, T, H]`: softmax of tanh of a linear score."""
        # The score of a pair is linear in both: each side's part is computed once instead of for every pair.
        of_state, of_attribute = self.score.weight.split(states.shape[-1], 1)
        scores = states @ of_state.T + (attributes @ of_attribute.T).transpose(1, 2) + self.score.bias
        return torch.tanh(scores).softmax(-1)
