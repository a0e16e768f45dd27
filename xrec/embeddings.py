"""The file of LightGCN embeddings that `embed` writes and everything after it reads.

It stands apart from `xrec.graph` because a process that serves an LLM must not import the graph libraries.
Shapes: L layers, N users, M items, D embedding width.
"""

import json
import os
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file

_HEADER_KEY = "xrec"


@dataclass
class Embeddings:
    """Every propagation layer's embeddings, kept so that new users and items can be folded in from neighbours.

    Attributes:
        user: `[L + 1, N, D]` float32; layer 0 first.
        item: `[L + 1, M, D]` float32.
        metadata: strings stored in the file's header.
    """

    user: torch.Tensor
    item: torch.Tensor
    metadata: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.user.ndim != 3 or self.item.ndim != 3 or self.user.shape[::2] != self.item.shape[::2]:
            raise ValueError(
                f"embeddings: user {tuple(self.user.shape)} and item {tuple(self.item.shape)} must be "
                "[layers + 1, nodes, dim] with the same number of layers and the same dim"
            )

    @property
    def dim(self) -> int:
        return self.user.shape[2]

    def user_mean(self) -> torch.Tensor:
        """`[N, D]`: the layers averaged (paper Eq. 8, arXiv 2406.02377)."""
        return self.user.mean(0)

    def item_mean(self) -> torch.Tensor:
        """`[M, D]`: the layers averaged (paper Eq. 8)."""
        return self.item.mean(0)

    def save(self, path: str | os.PathLike) -> None:
        """Write a safetensors file; whole or not at all."""
        target = Path(path)
        temporary = target.with_name(f"{target.name}.tmp-{os.getpid()}")
        # One sorted key, because the header's keys come in random order: equal embeddings must make equal files.
        header = {_HEADER_KEY: json.dumps(self.metadata, sort_keys=True)}
        save_file({"user": self.user.contiguous(), "item": self.item.contiguous()}, temporary, metadata=header)
        os.replace(temporary, target)

    @classmethod
    def load(cls, path: str | os.PathLike) -> "Embeddings":
        """Read a file that `save` wrote.

        Raises:
            ValueError: the file holds other tensors than `user` and `item`.
        """
        with safe_open(os.fspath(path), framework="pt") as file:
            if set(file.keys()) != {"user", "item"}:
                raise ValueError(
                    f"{path}: holds {sorted(file.keys())}, not the tensors 'user' and 'item'; rerun `xrec embed`"
                )
            metadata = json.loads((file.metadata() or {}).get(_HEADER_KEY, "{}"))
            return cls(file.get_tensor("user"), file.get_tensor("item"), metadata)
