"""Embeddings of users and items by identity, with one more for those that training has no explanation of."""

from collections.abc import Sequence

import torch
from torch import nn

UNKNOWN_SHARE = 0.1


class NodeEmbedding(nn.Module):
    """An embedding for each user (or item) that has training explanations, and a shared one for all others.

    Systems that know users and items by identity alone can say nothing particular about new ones. The shared embedding
    stands for them; it learns from a random tenth of the training rows, whose identity is hidden.

    Shapes: B rows, N nodes of the workspace, K known ones, H width.

    Args:
        nodes: N.
        known: K.
        width: H.

    Attributes:
        rows: `[N]` int64, the row of `table` that is each node's; 0 is the unknown's.
        table: `[K + 1, H]`.
    """

    def __init__(self, nodes: int, known: int, width: int):
        super().__init__()
        self.rows: torch.Tensor
        self.register_buffer("rows", torch.zeros(nodes, dtype=torch.long))
        self.table = nn.Embedding(known + 1, width)
        nn.init.uniform_(self.table.weight, -0.1, 0.1)

    def set_known(self, nodes: Sequence[int]) -> None:
        """Say which K nodes have an embedding of their own.

        Raises:
            ValueError: they are not K distinct ones.
        """
        if len(set(nodes)) != len(nodes) or len(nodes) != self.table.num_embeddings - 1:
            raise ValueError(
                f"{len(nodes)} known nodes ({len(set(nodes))} distinct), but the table has room for "
                f"{self.table.num_embeddings - 1}; give each once"
            )
        self.rows.zero_()
        self.rows[torch.tensor(nodes, dtype=torch.long)] = torch.arange(1, len(nodes) + 1)

    def forward(self, nodes: torch.Tensor) -> torch.Tensor:
        """`[B]` indices to `[B, H]`; in training some are taken for unknown."""
        rows = self.rows[nodes]
        if self.training:
            hidden = torch.rand(rows.shape) < UNKNOWN_SHARE
            rows = rows.masked_fill(hidden.to(rows.device), 0)
        return self.table(rows)
