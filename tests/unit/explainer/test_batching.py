"""Rows, padding and the plan of steps, against loops written out here."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import BloomConfig, GPT2Config, LlamaConfig

from tests.tiny_world import WORDS, save_backbone, sentence
from xrec.config import ConfigError, PromptConfig
from xrec.explainer.batching import Row, RowEncoder, check_context, collate, micro_batches, plan_epoch, plan_in_order
from xrec.explainer.model import load_backbone
from xrec.explainer.prompt import PromptBuilder


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    folder = str(tmp_path_factory.mktemp("backbone"))
    save_backbone(folder)
    return load_backbone(folder)[1]


@pytest.fixture(scope="module")
def builder(tokenizer):
    return PromptBuilder(tokenizer, PromptConfig(max_profile_tokens=40))


def long_text(words: int) -> str:
    return " ".join(WORDS[k % len(WORDS)] for k in range(words))


def test_a_row_is_the_prompt_and_then_the_target(builder, tokenizer):
    row = RowEncoder(builder, 400).explanation(3, 4, "place", "quiet tea", "warm bread", "fresh coffee")
    prompt = builder.explain("place", "quiet tea", "warm bread")
    assert row is not None
    assert row.token_ids.tolist() == prompt.token_ids + builder.target("fresh coffee")
    assert row.target_length == len(builder.target("fresh coffee"))
    assert row.token_ids[-1] == tokenizer.eos_token_id
    assert (row.user, row.item) == (3, 4)
    assert list(row.user_positions) == prompt.user_positions and list(row.item_positions) == prompt.item_positions


def test_a_description_has_one_side_only(builder):
    encoder = RowEncoder(builder, 400)
    row = encoder.description("warm bread", item=2)
    assert row is not None and row.user == -1 and row.user_positions == () and len(row.item_positions) == 1
    with pytest.raises(ValueError, match="give one of the two"):
        encoder.description("warm bread", user=1, item=2)
    with pytest.raises(ValueError, match="give one of the two"):
        encoder.description("warm bread")


def test_the_target_leaves_the_prompt_alone(builder):
    texts = "place", long_text(60), long_text(60)
    short = PromptBuilder(builder.tokenizer, builder.config.model_copy(update={"max_tokens": 130}))
    prompt = short.explain(*texts)
    assert len(prompt.token_ids) == 130 < len(builder.explain(*texts).token_ids)
    for words in (1, 5, 30):
        target, limit = short.target(long_text(words)), 130 + len(short.target(long_text(words)))
        for max_length in (limit, limit + 1, 10_000):
            row = RowEncoder(short, max_length).explanation(0, 0, *texts, long_text(words))
            assert row is not None and row.token_ids.tolist() == prompt.token_ids + target
        assert RowEncoder(short, limit - 1).explanation(0, 0, *texts, long_text(words)) is None


def test_a_description_that_does_not_fit_is_refused(builder):
    row = RowEncoder(builder, 400).description(long_text(20), user=0)
    assert row is not None and RowEncoder(builder, len(row)).description(long_text(20), user=0) is not None
    assert RowEncoder(builder, len(row) - 1).description(long_text(20), user=0) is None


def test_rows_longer_than_the_context_are_refused():
    check_context(64, LlamaConfig(max_position_embeddings=64))
    check_context(64, GPT2Config(n_positions=64))
    check_context(10**6, BloomConfig())  # a family without a limit
    for config in (LlamaConfig(max_position_embeddings=64), GPT2Config(n_positions=64)):
        with pytest.raises(ConfigError, match="tune.max_length = 65, but the backbone reads at most 64 tokens.*set"):
            check_context(65, config)


def test_collate_against_a_loop_over_every_position(builder):
    generator, encoder = np.random.default_rng(0), RowEncoder(builder, 400)
    rows = [encoder.explanation(u, u + 1, "place", None, sentence(generator), sentence(generator)) for u in range(4)]
    rows += [encoder.description("warm bread", user=2), encoder.description("tea", item=3)]
    user, item = torch.randn(6, 5), torch.randn(6, 5)
    batch = collate(rows, user, item, pad_id=9)
    width = max(len(row.token_ids) for row in rows)
    for b, row in enumerate(rows):
        length = len(row.token_ids)
        for t in range(width):
            place = t - (width - length)
            real = place >= 0
            assert batch.input_ids[b, t] == (row.token_ids[place] if real else 9)
            assert batch.attention_mask[b, t] == int(real)
            assert batch.user_mask[b, t] == (real and place in row.user_positions)
            assert batch.item_mask[b, t] == (real and place in row.item_positions)
            labelled = real and place >= length - row.target_length
            assert batch.labels[b, t] == (row.token_ids[place] if labelled else -100)
        assert torch.equal(batch.user[b], user[row.user] if row.user >= 0 else torch.zeros(5))
        assert torch.equal(batch.item[b], item[row.item] if row.item >= 0 else torch.zeros(5))
    assert batch.input_ids.dtype == batch.labels.dtype == batch.attention_mask.dtype == torch.int64


plans = given(
    lengths=st.lists(st.integers(1, 300), min_size=1, max_size=400),
    batch_size=st.integers(1, 40),
    seed=st.integers(0, 5),
    epoch=st.integers(0, 5),
)


@settings(max_examples=60, deadline=None)
@plans
def test_every_row_is_in_an_epoch_once(lengths, batch_size, seed, epoch):
    for plan in (plan_epoch(lengths, batch_size, seed, epoch), plan_in_order(lengths, batch_size)):
        assert sorted(np.concatenate(plan).tolist()) == list(range(len(lengths)))
        assert sorted(len(step) for step in plan)[1:] == [batch_size] * (len(plan) - 1)
        assert len(plan) == -(-len(lengths) // batch_size)
    again = plan_epoch(lengths, batch_size, seed, epoch)
    assert all(np.array_equal(a, b) for a, b in zip(plan_epoch(lengths, batch_size, seed, epoch), again, strict=True))


@settings(max_examples=60, deadline=None)
@given(rows=st.integers(1, 60), world=st.integers(1, 7), size=st.one_of(st.none(), st.integers(1, 9)))
def test_workers_share_a_step_without_overlap_and_in_step(rows, world, size):
    step = np.random.default_rng(rows).permutation(1000)[:rows]
    shares = [micro_batches(step, rank, world, size) for rank in range(world)]
    counted = [row for share in shares for piece, counts in share if counts for row in piece]
    assert sorted(counted) == sorted(step.tolist())
    assert len({len(share) for share in shares}) == 1, "collectives must be called equally often"
    assert all(len(piece) >= 1 for share in shares for piece, _ in share)
    assert size is None or all(len(piece) <= size for share in shares for piece, _ in share)
    for rank, share in enumerate(shares):
        mine = [row for piece, counts in share if counts for row in piece]
        assert mine == step[rank::world].tolist()


def test_epochs_and_seeds_differ_and_steps_hold_like_lengths():
    lengths = np.random.default_rng(0).integers(10, 400, 2000).tolist()
    first, second, other = plan_epoch(lengths, 16, 0, 0), plan_epoch(lengths, 16, 0, 1), plan_epoch(lengths, 16, 1, 0)
    assert not np.array_equal(first[0], second[0]) and not np.array_equal(first[0], other[0])

    def padding(plan):
        sizes = np.asarray(lengths)
        return sum(int((sizes[step].max() - sizes[step]).sum()) for step in plan) / sum(lengths)

    shuffled = np.random.default_rng(1).permutation(2000)
    unsorted = [shuffled[i : i + 16] for i in range(0, 2000, 16)]
    assert padding(first) < 0.1 * padding(unsorted)
    order = [int(np.mean([lengths[i] for i in step])) for step in first]
    assert order != sorted(order), "steps must not come in order of length"


def test_a_row_knows_its_length():
    assert len(Row(0, 0, np.arange(7, dtype=np.int32), 2, (1,), (2,))) == 7
