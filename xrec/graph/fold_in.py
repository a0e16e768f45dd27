"""Embeddings for users and items that training has not seen, from their interactions with known ones.

Nothing is retrained, and known embeddings stay as they are. Shapes: N known users, M known items, D width, L layers,
Q new nodes, E interactions.
"""

import torch

from xrec.embeddings import Embeddings
from xrec.graph.interactions import InteractionSplits, check_pairs


class FoldIn:
    """Gives new nodes the embeddings that LightGCN would give them if the known nodes did not react to them.

    A new user u with known items N_u gets, for the layers l = 1 … L, what Eq. 7 of arXiv 2406.02377 says:

        e_u^(l) = sum over i in N_u of e_i^(l-1) / sqrt(|N_u| |N_i|)

    with the known items' stored layers and their degrees |N_i| in the training graph. Layer 0 is learned, not
    propagated, so it is estimated from what is known of the user: e_u^(0) = e_u^(1) W, where W `[D, D]` is the
    ridge regression of layer 0 on layer 1 over the known users. New items likewise, the roles exchanged. A node
    without any known neighbour gets the mean of the known nodes in every layer: nothing sets it apart.

    Args:
        embeddings: of the known nodes, at least one propagation layer.
        train: `[2, E]` int64 the (user, item) pairs of the training graph.

    Raises:
        ValueError: the embeddings have layer 0 only, or a pair is out of range.
    """

    def __init__(self, embeddings: Embeddings, train: torch.Tensor):
        if embeddings.user.shape[0] < 2:
            raise ValueError("fold-in needs propagation layers; embed with layers of 1 or more")
        check_pairs("train", train, embeddings.user.shape[1], embeddings.item.shape[1])
        self.embeddings = embeddings
        self.user_degree = torch.bincount(train[0], minlength=embeddings.user.shape[1])
        self.item_degree = torch.bincount(train[1], minlength=embeddings.item.shape[1])
        self.user_map = _layer_zero_map(embeddings.user, self.user_degree)
        self.item_map = _layer_zero_map(embeddings.item, self.item_degree)

    def users(self, pairs: torch.Tensor, count: int) -> torch.Tensor:
        """`[L + 1, Q, D]` for new users.

        Args:
            pairs: `[2, E]` int64 distinct pairs of a new user (0 to Q-1) and a known item.
            count: Q.

        Raises:
            ValueError: a new user or a known item is out of range.
        """
        check_pairs("fold-in of users", pairs, count, self.embeddings.item.shape[1])
        return _fold_in(pairs[0], pairs[1], count, self.embeddings.item, self.item_degree, self.user_map, self._mean(0))

    def items(self, pairs: torch.Tensor, count: int) -> torch.Tensor:
        """`[L + 1, Q, D]` for new items; `pairs` `[2, E]` of a known user and a new item (0 to Q-1)."""
        check_pairs("fold-in of items", pairs, self.embeddings.user.shape[1], count)
        return _fold_in(pairs[1], pairs[0], count, self.embeddings.user, self.user_degree, self.item_map, self._mean(1))

    def _mean(self, side: int) -> torch.Tensor:
        return (self.embeddings.user, self.embeddings.item)[side].mean(1, keepdim=True)


def fold_in_zero_shot(embeddings: Embeddings, splits: InteractionSplits) -> Embeddings:
    """Append a row for every zero-shot node, folded in from its `fold_in` interactions with trained nodes.

    Args:
        embeddings: of the trained nodes.
        splits: who is zero-shot, and the interactions.

    Returns:
        Embeddings of all nodes. Its metadata says how many users and items were folded in, and how many of these
        had no interaction with a trained node.
    """
    new_users, new_items = splits.users - splits.trained_users, splits.items - splits.trained_items
    user, item = embeddings.user, embeddings.item
    metadata = dict(embeddings.metadata)
    if new_users or new_items:
        fold_in, pairs = FoldIn(embeddings, splits.train), splits.fold_in
        of_users = pairs[:, (pairs[0] >= splits.trained_users) & (pairs[1] < splits.trained_items)]
        of_items = pairs[:, (pairs[0] < splits.trained_users) & (pairs[1] >= splits.trained_items)]
        of_users = of_users - torch.tensor([[splits.trained_users], [0]])
        of_items = of_items - torch.tensor([[0], [splits.trained_items]])
        user = torch.cat([user, fold_in.users(of_users, new_users)], 1)
        item = torch.cat([item, fold_in.items(of_items, new_items)], 1)
        metadata["folded_in_users_without_neighbours"] = str(new_users - len(of_users[0].unique()))
        metadata["folded_in_items_without_neighbours"] = str(new_items - len(of_items[1].unique()))
    metadata |= {"folded_in_users": str(new_users), "folded_in_items": str(new_items)}
    return Embeddings(user, item, metadata)


def _fold_in(new, known, count, layers, known_degree, layer_zero_map, mean) -> torch.Tensor:
    """`[L + 1, Q, D]`: edge e joins node `new[e]` to node `known[e]`, whose embeddings are `layers[:, known[e]]`."""
    degree = torch.bincount(new, minlength=count)
    # A known node may have no training interaction; one is the least degree that an edge can mean.
    weights = (degree[new] * known_degree[known].clamp(min=1)).to(layers.dtype).rsqrt()
    matrix = torch.sparse_coo_tensor(
        torch.stack([new, known]), weights, (count, layers.shape[1]), check_invariants=False
    )
    upper = torch.stack([matrix @ layer for layer in layers[:-1]])
    result = torch.cat([(upper[0] @ layer_zero_map)[None], upper])
    return torch.where((degree == 0)[None, :, None], mean, result)


def _layer_zero_map(layers: torch.Tensor, degree: torch.Tensor) -> torch.Tensor:
    """`[D, D]`: the ridge regression of layer 0 on layer 1 over the nodes that have neighbours."""
    zero, one = layers[0, degree > 0].double(), layers[1, degree > 0].double()
    gram = one.T @ one
    ridge = 1e-3 * gram.diagonal().mean() + torch.finfo(torch.float64).tiny
    return torch.linalg.solve(gram + ridge * torch.eye(len(gram), dtype=gram.dtype), one.T @ zero).float()
