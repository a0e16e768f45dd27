"""Training on groups of two and three processes against the one process of `train_lightgcn`."""

import pytest
import torch

from tests.unit.graph.groups import run_group
from xrec.graph.lightgcn import locality_order
from xrec.graph.state import TrainingState
from xrec.graph.training import STOPPING_METRIC, relabel, train_lightgcn

SETTINGS = {"dim": 16, "layers": 2, "batch_size": 512, "learning_rate": 1e-2, "weight_decay": 1e-2, "seed": 0}
EPOCHS = 6


def graph_of(world):
    order = locality_order(world.train, world.users, world.items)
    pairs = {"train": relabel(world.train, order), "val": relabel(world.val, order)}
    return pairs | {"users": world.users, "items": world.items}, order


def saturated(world):
    """The same world, but one user has every item and another none, so that the former has no negatives."""
    everything = torch.stack([torch.full((world.items,), 3), torch.arange(world.items)])
    others = world.train[:, (world.train[0] != 3) & (world.train[0] != 5)]
    return type(world)(world.users, world.items, torch.cat([others, everything], 1), world.val, world.test)


CASES = {
    "plain": {"max_epochs": EPOCHS},
    "four layers": {"max_epochs": 3, "layers": 4, "batch_size": 333, "evaluate_every": 2},
    "no layers": {"max_epochs": 2, "layers": 0},
    "stops early": {"max_epochs": 40, "patience": 2, "learning_rate": 0.1},
    "saturated": {"max_epochs": 3},
}


def world_of(name, world):
    return saturated(world) if name == "saturated" else world


@pytest.fixture(scope="module")
def alone(taste_world):
    """The one process's results."""
    results = {}
    for name, case in CASES.items():
        world = world_of(name, taste_world)
        results[name] = train_lightgcn(world.train, world.val, world.users, world.items, **(SETTINGS | case))
    return results


def rows_of(outcome, part):
    """All workers' rows of one of their tables, as all users and all items in the order of training."""
    (users, items), tables = outcome[0]["ranges"], [part(one) for one in outcome]
    cuts = [users[rank + 1] - users[rank] for rank in range(len(outcome))]
    parts = [table.split([cut, table.shape[-2] - cut], dim=-2) for table, cut in zip(tables, cuts, strict=True)]
    assert [users[-1], items[-1]] == [sum(p[side].shape[-2] for p in parts) for side in (0, 1)]
    return torch.cat([p[0] for p in parts], -2), torch.cat([p[1] for p in parts], -2)


def joined_state(outcome, epoch):
    """The checkpoint after an epoch, of all workers as one."""
    states = [one["saved"][epoch] for one in outcome]
    tensors = {
        name: torch.cat(rows_of(outcome, lambda one, name=name: one["saved"][epoch]["tensors"][name]))
        for name in ("embedding", "best", "exp_avg", "exp_avg_sq")
    }
    return {**states[0], "tensors": tensors | {"step": states[0]["tensors"]["step"]}}


@pytest.fixture(scope="module", params=[2, 3])
def together(request, taste_world, tmp_path_factory):
    """The group's results, with the ranges of its share of each world."""
    cases = [graph_of(world_of(name, taste_world))[0] | SETTINGS | case for name, case in CASES.items()]
    results = run_group(request.param, cases, tmp_path_factory.mktemp("group") / "run")
    return dict(zip(CASES, results, strict=True))


@pytest.mark.parametrize("name", CASES)
def test_equals_one_process(taste_world, alone, together, name):
    expected, outcome = alone[name], together[name]
    order = graph_of(world_of(name, taste_world))[1]
    user, item = rows_of(outcome, lambda one: one["layers"])
    torch.testing.assert_close(user[:, order[0]], expected.embeddings.user, atol=1e-5, rtol=0)
    torch.testing.assert_close(item[:, order[1]], expected.embeddings.item, atol=1e-5, rtol=0)
    for one in outcome:
        assert one["best"] == pytest.approx((expected.best_epoch, expected.best_recall), abs=1e-5)
        assert len(one["history"]) == len(expected.history)
        for found, wanted in zip(one["history"], expected.history, strict=True):
            assert found.keys() == wanted.keys()
            for figure in found.keys() - {"seconds"}:
                assert found[figure] == pytest.approx(wanted[figure], abs=1e-5), figure
    assert any(STOPPING_METRIC in entry for entry in expected.history)


def test_the_work_is_really_dealt_out(together):
    outcome = together["plain"]
    edges = [one["layers"].shape[1] for one in outcome]
    assert max(edges) < sum(edges)
    assert all(one["halo"] > 0 for one in outcome)
    assert len({tuple(map(tuple, one["ranges"])) for one in outcome}) == 1


def test_goes_on_at_another_number_of_workers(taste_world, together, alone):
    """From three workers or two to one process."""
    state = TrainingState(**joined_state(together["plain"], 1))
    assert state.epoch == 2
    expected = alone["plain"]
    whole = train_lightgcn(
        taste_world.train,
        taste_world.val,
        taste_world.users,
        taste_world.items,
        **SETTINGS,
        max_epochs=EPOCHS,
        resume=state,
    )
    torch.testing.assert_close(whole.embeddings.user, expected.embeddings.user, atol=1e-5, rtol=0)
    torch.testing.assert_close(whole.embeddings.item, expected.embeddings.item, atol=1e-5, rtol=0)
    assert whole.best_epoch == expected.best_epoch
