"""Splits as tensors: what `from_tables` accepts, and what it refuses."""

import pyarrow as pa
import pytest
import torch

from xrec.graph.interactions import InteractionSplits, check_pairs

ROWS = [(0, 0, "train"), (1, 1, "train"), (1, 0, "val"), (0, 1, "test"), (2, 0, "fold_in"), (2, 1, "test")]


def tables(rows, user_flags=(False, False, True), item_flags=(False, False)):
    users = pa.table({"user": pa.array(range(len(user_flags)), pa.int32()), "zero_shot": list(user_flags)})
    items = pa.table({"item": pa.array(range(len(item_flags)), pa.int32()), "zero_shot": list(item_flags)})
    user, item, split = zip(*rows, strict=True)
    return (
        users,
        items,
        pa.table({"user": pa.array(user, pa.int32()), "item": pa.array(item, pa.int32()), "split": split}),
    )


def test_from_tables():
    splits = InteractionSplits.from_tables(*tables(ROWS))
    assert (splits.users, splits.items, splits.trained_users, splits.trained_items) == (3, 2, 2, 2)
    assert splits.train.tolist() == [[0, 1], [0, 1]]
    assert splits.val.tolist() == [[1], [0]]
    assert splits.test.tolist() == [[0, 2], [1, 1]]
    assert splits.fold_in.tolist() == [[2], [0]]
    assert splits.trained_only(splits.test).tolist() == [[0], [1]]


def test_refuses_a_zero_shot_node_in_training():
    with pytest.raises(ValueError, match=r"split 'train': user 2 at position 2 is not among the 2 users"):
        InteractionSplits.from_tables(*tables([*ROWS, (2, 0, "train")]))


def test_refuses_an_unknown_item():
    with pytest.raises(ValueError, match="split 'test': item 2 at position 0 is not among the 2 items"):
        InteractionSplits.from_tables(*tables([(0, 2, "test")]))


def test_refuses_zero_shot_nodes_that_are_not_last():
    with pytest.raises(ValueError, match="user 0 is zero-shot but comes before"):
        InteractionSplits.from_tables(*tables(ROWS, user_flags=(True, False, False)))


def test_refuses_gaps_in_the_indices():
    users, items, interactions = tables(ROWS)
    with pytest.raises(ValueError, match="column 'user' does not count 0, 1, 2"):
        InteractionSplits.from_tables(users.slice(1), items, interactions)


@pytest.mark.parametrize("pairs", [torch.zeros(3, 4).long(), torch.zeros(2).long(), torch.zeros(2, 4)])
def test_check_pairs_refuses_other_shapes_and_types(pairs):
    with pytest.raises(ValueError, match="some pairs: expected an int64 tensor"):
        check_pairs("some pairs", pairs, 10, 10)
