"""A floor: an explanation that was written for somebody like the user, word for word.

Similarity is the cosine of LightGCN embeddings, layers averaged, so the floor knows the collaborative signal and writes
nothing itself. Shapes: N users, M items, D width, P training explanations, B pairs.
"""

from collections.abc import Iterator

import numpy as np
import torch
from torch.nn import functional as F

SOURCES = ("item", "user", "neighbour")


class SimilarUser:
    """Chooses among the training explanations.

    For a pair of user and item, the first of these that there is: the explanation of the same item by the user most
    similar to this one; this user's own explanation of the item most similar to this one; of the user most similar to
    this one among all with an explanation, that of the item most similar to this one. Of equals the first counts, in
    the order of users and items. The explanation of the pair itself, where it is a training pair, never counts.

    Args:
        user, item: `[N, D]` and `[M, D]` embeddings.
        explained_users, explained_items: `[P]` the training explanations' pairs, sorted by user and item.
    """

    def __init__(
        self, user: torch.Tensor, item: torch.Tensor, explained_users: np.ndarray, explained_items: np.ndarray
    ):
        self.user, self.item = F.normalize(user.double()), F.normalize(item.double())
        self.users, self.items = explained_users, explained_items
        if not len(explained_users):
            raise ValueError("similar_user: there is no training explanation to choose from; explain training pairs")
        self._of_user = _groups(explained_users)
        self._of_item = _groups(explained_items)
        self._writers = np.unique(explained_users)

    def choose(self, users: np.ndarray, items: np.ndarray, batch_size: int = 1024) -> tuple[np.ndarray, list[str]]:
        """For `[B]` pairs, the training explanations chosen (`[B]`, by number), and which of `SOURCES` each is."""
        chosen, sources = [], []
        for start in range(0, len(users), batch_size):
            for number, source in self._choose(users[start : start + batch_size], items[start : start + batch_size]):
                chosen.append(number)
                sources.append(source)
        return np.array(chosen, dtype=np.int64), sources

    def _choose(self, users: np.ndarray, items: np.ndarray) -> Iterator[tuple[int, str]]:
        # [B, writers]: the one product over all users; whom a row compares beyond that are a few.
        to_writers = (self.user[users] @ self.user[self._writers].T).numpy()
        for row, (user, item) in enumerate(zip(users.tolist(), items.tolist(), strict=True)):
            same_item = self._of_item.get(item, _NONE)
            same_item = same_item[self.users[same_item] != user]
            if len(same_item):
                yield _best(same_item, self.user[self.users[same_item]] @ self.user[user]), "item"
                continue
            own = self._of_user.get(user, _NONE)
            own = own[self.items[own] != item]
            source = "user"
            if not len(own):
                similarity = np.where(self._writers == user, -np.inf, to_writers[row])
                nearest = int(self._writers[similarity.argmax()])
                own, source = self._of_user[nearest], "neighbour"
            yield _best(own, self.item[self.items[own]] @ self.item[item]), source


_NONE = np.empty(0, dtype=np.int64)


def _groups(keys: np.ndarray) -> dict[int, np.ndarray]:
    """The positions of each key, ascending."""
    order = np.argsort(keys, kind="stable")
    values, starts = np.unique(keys[order], return_index=True)
    return dict(zip(values.tolist(), np.split(order, starts[1:]), strict=True))


def _best(numbers: np.ndarray, similarity: torch.Tensor) -> int:
    """The number with the greatest similarity; of equals the first."""
    return int(numbers[similarity.numpy().argmax()])
