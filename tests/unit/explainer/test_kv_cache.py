"""Caches that were merged and cut, against caches of the same tokens computed at once."""

import pytest
import torch
from transformers import AutoModelForCausalLM, DynamicCache, Gemma2Config, LlamaConfig, MistralConfig
from transformers.cache_utils import DynamicLayer

from tests.unit.explainer.decoders import SIZE
from xrec.explainer.kv_cache import can_merge, merge, select_rows
from xrec.explainer.model import positions_of

CONFIGS = {
    "all columns": lambda: LlamaConfig(**SIZE, num_key_value_heads=2),
    "the last 6 columns": lambda: MistralConfig(**SIZE, num_key_value_heads=2, sliding_window=6),
    "both, by layer": lambda: Gemma2Config(**SIZE, num_key_value_heads=2, head_dim=8, sliding_window=6),
}
PROMPTS = [list(range(10, 10 + length)) for length in (4, 9, 7, 3)]


@pytest.fixture(params=CONFIGS.values(), ids=CONFIGS.keys())
def model(request):
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(request.param(), attn_implementation="eager").float().eval()


@torch.inference_mode()
def read(model, prompts: list[list[int]]) -> DynamicCache:
    """The cache after a left-padded prompt pass."""
    width = max(map(len, prompts))
    tokens = torch.tensor([[0] * (width - len(p)) + p for p in prompts])
    mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts])
    cache = DynamicCache(config=model.config)
    model(tokens, attention_mask=mask, position_ids=positions_of(mask), past_key_values=cache, use_cache=True)
    return cache


def assert_same(found: DynamicCache, expected: DynamicCache, prompts: list[list[int]]) -> None:
    assert found.get_seq_length() == expected.get_seq_length() == max(map(len, prompts))
    for layer in range(len(expected.layers)):
        assert found.get_mask_sizes(1, layer) == expected.get_mask_sizes(1, layer)
    for one, other in zip(found.layers, expected.layers, strict=True):
        assert one.keys.shape == other.keys.shape
        for row, prompt in enumerate(prompts):
            torch.testing.assert_close(one.keys[row, :, -len(prompt) :], other.keys[row, :, -len(prompt) :])
            torch.testing.assert_close(one.values[row, :, -len(prompt) :], other.values[row, :, -len(prompt) :])


@pytest.mark.parametrize("split", [1, 2, 3])
def test_merged_caches_are_those_of_one_batch(model, split):
    cache = read(model, PROMPTS[:split])
    merge(cache, read(model, PROMPTS[split:]), max(map(len, PROMPTS)))
    assert_same(cache, read(model, PROMPTS), PROMPTS)


@pytest.mark.parametrize("rows", [[0, 3], [1], [2, 3], [0, 1, 2, 3]])
def test_rows_that_stay_keep_no_column_for_those_that_left(model, rows):
    stay = [PROMPTS[row] for row in rows]
    cache = read(model, PROMPTS)
    select_rows(cache, torch.tensor(rows), max(map(len, stay)))
    assert_same(cache, read(model, stay), stay)


def test_layers_that_hold_more_than_keys_and_values_are_not_merged(model):
    class Other(DynamicLayer):
        pass

    cache = read(model, PROMPTS)
    assert can_merge(cache)
    cache.layers[-1] = Other()
    assert not can_merge(cache)
