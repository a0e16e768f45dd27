"""How large vLLM's cache is made on a CPU, without vLLM."""

import pytest
from transformers import LlamaConfig, MistralConfig, Qwen3Config

from xrec.explainer.vllm_memory import cache_arguments

GIB = 2**30
# 2 x 30 layers x 3 heads x 64 numbers x 4 bytes = 46,080 bytes a token.
SMOL = LlamaConfig(
    hidden_size=576,
    num_hidden_layers=30,
    num_attention_heads=9,
    num_key_value_heads=3,
    max_position_embeddings=8192,
)
TOKEN = 46_080


def size(config=SMOL, available=None, environment=None, **arguments) -> int | None:
    return cache_arguments(config, arguments, environment or {}, available).get("kv_cache_memory_bytes")


def test_a_small_running_batch_gets_all_it_can_use():
    # 8 sequences of 16 blocks, and vLLM's own block.
    assert size(max_num_seqs=8, max_model_len=512, block_size=32) == (8 * 16 + 1) * 32 * TOKEN
    # A part of a block is a block.
    assert size(max_num_seqs=8, max_model_len=513, block_size=32) == (8 * 17 + 1) * 32 * TOKEN
    assert size(max_num_seqs=8, max_model_len=512, block_size=32, dtype="bfloat16") == (8 * 16 + 1) * 32 * TOKEN // 2
    shared = {"tensor_parallel_size": 3, "pipeline_parallel_size": 2}
    assert size(max_num_seqs=8, max_model_len=512, block_size=32, **shared) == (8 * 16 + 1) * 32 * TOKEN // 6


def test_a_large_one_gets_four_gibibytes_and_one_sequence_always_fits():
    assert size() == 4 * GIB
    wide = LlamaConfig(max_position_embeddings=8192)
    assert size(wide) == (8192 + 128) * 2**20
    assert size(wide, max_model_len=2048) == 4 * GIB


def test_head_sizes_of_their_own_and_absent_kv_heads():
    qwen = Qwen3Config(num_hidden_layers=4, num_key_value_heads=2, head_dim=64, max_position_embeddings=512)
    assert size(qwen, max_num_seqs=1) == (4 + 1) * 128 * 2 * 4 * 2 * 64 * 4
    mistral = MistralConfig(num_hidden_layers=4, num_key_value_heads=8, max_position_embeddings=512)
    assert size(mistral, max_num_seqs=1) == (4 + 1) * 128 * 2 * 4 * 8 * 128 * 4


def test_half_of_the_available_memory_is_left_for_the_weights():
    assert size(available=16 * GIB) == 4 * GIB
    assert size(available=4 * GIB) == 2 * GIB
    # Less only where one sequence takes more: 8192 tokens and a block.
    assert size(available=GIB // 2) == (8192 + 128) * TOKEN


def test_too_little_for_one_sequence_is_refused_with_what_would_fit():
    with pytest.raises(ValueError, match=r"8,192 tokens, and 0\.2 GiB .* are available") as raised:
        size(available=GIB // 4 - 60 * 2**20)
    words = str(raised.value)
    assert "engine_arguments.max_model_len" in words and "explain.compute" in words
    fits = int(words.partition(" tokens at most")[0].rpartition(" ")[2].replace(",", ""))
    assert 0 < fits < 8192
    assert size(available=GIB // 4 - 60 * 2**20, max_model_len=fits) is not None


@pytest.mark.parametrize(
    "arguments", [{"gpu_memory_utilization": 0.3}, {"kv_cache_memory_bytes": 5}, {"num_gpu_blocks_override": 9}]
)
def test_settings_that_size_the_cache_are_left_alone(arguments):
    assert cache_arguments(SMOL, arguments, {}, 1) == {}
    assert cache_arguments(SMOL, {}, {"VLLM_CPU_KVCACHE_SPACE": "2"}, 1) == {}
    assert cache_arguments(SMOL, {}, {"VLLM_CPU_KVCACHE_SPACE": ""}, None) != {}


def test_a_length_that_vllm_is_to_choose_needs_no_room():
    assert size(max_model_len=-1, available=2 * GIB) == min(GIB, (256 + 1) * 128 * TOKEN)
