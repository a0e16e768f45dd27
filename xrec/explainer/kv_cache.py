"""Key-value caches whose rows come and go: rows leave, caches merge, and columns that nobody needs any more go.

Rows are left padded, so a cache of width W holds, for each row, its last W columns, the oldest of which may be padding.
The attention mask, which says which are, is `running_batch.py`'s business.

Shapes: B rows, W columns, N key-value heads, D head size.
"""

from typing import Any

import torch
from torch.nn.functional import pad
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer


def can_merge(cache: DynamicCache) -> bool:
    """Whether every layer keeps nothing but keys and values by column, for all columns or the last few.

    Others (linear attention's states, an indexer's keys) hold more than these functions know of.
    """
    return all(type(layer) in (DynamicLayer, DynamicSlidingWindowLayer) for layer in cache.layers)


def select_rows(cache: DynamicCache, rows: torch.Tensor, width: int) -> None:
    """Keep some rows and, where the cache can be merged, only the last columns.

    Args:
        cache: changed in place.
        rows: `[B']` the indices to keep.
        width: of the longest row that stays; what lies before it is padding.
    """
    if can_merge(cache):
        layers: list[Any] = cache.layers
        for layer in layers:
            excess = layer.keys.shape[-2] - _held(layer, width)
            _replace(layer, layer.keys[..., excess:, :], layer.values[..., excess:, :], width)
    cache.batch_select_indices(rows)


def merge(cache: DynamicCache, other: DynamicCache, width: int) -> None:
    """Append another cache's rows.

    Args:
        cache, other: both of which `can_merge`, `[B, N, W, D]` a layer; the first is changed in place.
        width: of the longest row of either; shorter ones are padded on the left.
    """
    layers: list[Any] = cache.layers
    others: list[Any] = other.layers
    for layer, more in zip(layers, others, strict=True):
        held = _held(layer, width)
        keys = torch.cat([_widen(layer.keys, held), _widen(more.keys, held)])
        values = torch.cat([_widen(layer.values, held), _widen(more.values, held)])
        _replace(layer, keys, values, width)


def _held(layer: DynamicLayer, width: int) -> int:
    """How many columns a layer holds of a cache of some width."""
    if isinstance(layer, DynamicSlidingWindowLayer):
        return min(width, layer.sliding_window - 1)
    return width


def _widen(states: torch.Tensor, width: int) -> torch.Tensor:
    return pad(states, (0, 0, width - states.shape[-2], 0))


def _replace(layer: DynamicLayer, keys: torch.Tensor, values: torch.Tensor, width: int) -> None:
    layer.keys, layer.values = keys, values
    if isinstance(layer, DynamicSlidingWindowLayer):
        # Where the window begins follows from the columns there have been.
        layer.cumulative_length = width
