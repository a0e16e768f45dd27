"""Training on a world of known taste: it learns, it repeats, it resumes, and its loss is the paper's."""

import math

import pytest
import torch
from torch_geometric.nn.models import LightGCN as ReferenceLightGCN

from xrec.graph import training
from xrec.graph.negatives import NegativeSampler
from xrec.graph.ranking_metrics import evaluate_ranking
from xrec.graph.state import TrainingState
from xrec.graph.training import STOPPING_METRIC, train_lightgcn

SETTINGS = {"dim": 16, "layers": 2, "batch_size": 512, "learning_rate": 1e-2}


@pytest.fixture
def arguments(taste_world):
    return taste_world.train, taste_world.val, taste_world.users, taste_world.items


def test_learns_what_the_hidden_taste_decides(taste_world, arguments):
    result = train_lightgcn(*arguments, **SETTINGS, max_epochs=60)
    user, item = result.embeddings.user_mean(), result.embeddings.item_mean()
    recall = evaluate_ranking(user, item, taste_world.test, taste_world.train).mean()["recall@20"]
    popularity = torch.bincount(taste_world.train[1], minlength=taste_world.items).float()[:, None]
    ones = torch.ones(taste_world.users, 1)
    popular = evaluate_ranking(ones, popularity, taste_world.test, taste_world.train).mean()["recall@20"]
    chance = 20 / taste_world.items
    assert recall > 4 * chance
    assert recall > 1.5 * popular
    assert result.history[-1]["bpr"] < 0.5 * math.log(2)  # the loss of indifference is log 2


def test_keeps_the_best_epoch_and_stops_after_patience(arguments):
    seen = []
    result = train_lightgcn(*arguments, **SETTINGS, patience=3, on_epoch=seen.append)
    recalls = [entry[STOPPING_METRIC] for entry in result.history]
    assert seen == result.history
    assert result.best_recall == max(recalls)
    assert result.best_epoch == recalls.index(max(recalls))
    assert len(recalls) == result.best_epoch + 1 + 3
    train, val, *_ = arguments
    again = evaluate_ranking(result.embeddings.user_mean(), result.embeddings.item_mean(), val, train)
    assert again.mean()["recall@20"] == pytest.approx(result.best_recall, abs=1e-3)


def test_evaluates_as_often_as_asked(arguments):
    result = train_lightgcn(*arguments, **SETTINGS, max_epochs=5, evaluate_every=2)
    assert [STOPPING_METRIC in entry for entry in result.history] == [False, True, False, True, True]


def test_embeddings_are_the_layers_of_the_graph_in_the_callers_order(taste_world, arguments):
    embeddings = train_lightgcn(*arguments, **SETTINGS, max_epochs=2).embeddings
    assert embeddings.user.shape == (3, taste_world.users, 16)
    assert embeddings.item.shape == (3, taste_world.items, 16)
    dense = torch.zeros(taste_world.users, taste_world.items)
    dense[taste_world.train[0], taste_world.train[1]] = 1
    dense /= (dense.sum(1, keepdim=True) * dense.sum(0, keepdim=True)).sqrt().clamp(min=1)
    torch.testing.assert_close(embeddings.user[1:], dense @ embeddings.item[:-1], atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(embeddings.item[1:], dense.T @ embeddings.user[:-1], atol=1e-6, rtol=1e-5)


def test_loss_and_gradient_of_a_step_equal_the_papers(taste_world, arguments):
    train, _, users, items = arguments
    trainer = training.Trainer(train, users, items, 16, 2, 256, 1e-2, 0.05, 0, "cpu")
    nodes = torch.stack(
        [train[0], train[1] + users, NegativeSampler(train, users, items).sample(torch.Generator()) + users]
    )
    batch = nodes[:, :256]
    reference = ReferenceLightGCN(users + items, 16, 2)
    reference.embedding.weight.data.copy_(trainer.model.embedding.data)
    edges = torch.cat([torch.stack([train[0], train[1] + users]), torch.stack([train[1] + users, train[0]])], 1)
    final, first = reference.get_embedding(edges), reference.embedding.weight
    u, p, n = (final[batch[row]] for row in range(3))
    bpr = -torch.log(torch.sigmoid((u * p).sum(1) - (u * n).sum(1))).mean()  # Eq. 9
    l2 = sum(first[batch[row]].norm(dim=1).square().sum() for row in range(3)) / 2 / 256  # Eq. 10
    (bpr + 0.05 * l2).backward()
    terms = trainer.step(batch)
    torch.testing.assert_close(terms, torch.stack([bpr, l2]).detach())
    torch.testing.assert_close(trainer.model.embedding.grad, first.grad)


def test_same_seed_same_embeddings(arguments):
    first, again, other = (train_lightgcn(*arguments, **SETTINGS, max_epochs=3, seed=s).embeddings for s in (1, 1, 2))
    assert torch.equal(first.user, again.user)
    assert torch.equal(first.item, again.item)
    assert not torch.equal(first.user, other.user)


@pytest.mark.parametrize("interrupted_after", [1, 4, 9])
def test_resuming_equals_not_stopping_bit_for_bit(arguments, interrupted_after):
    whole = train_lightgcn(*arguments, **SETTINGS, max_epochs=12, patience=3)
    states: list[bytes] = []

    class Interrupted(Exception):
        pass

    def save(state):
        states.append(state.to_bytes())
        if len(states) == interrupted_after:
            raise Interrupted

    with pytest.raises(Interrupted):
        train_lightgcn(*arguments, **SETTINGS, max_epochs=12, patience=3, on_checkpoint=save, checkpoint_seconds=0)
    state = TrainingState.from_bytes(states[-1])
    assert state.epoch == interrupted_after
    resumed = train_lightgcn(*arguments, **SETTINGS, max_epochs=12, patience=3, resume=state)
    assert torch.equal(resumed.embeddings.user, whole.embeddings.user)
    assert torch.equal(resumed.embeddings.item, whole.embeddings.item)
    assert (resumed.best_epoch, resumed.best_recall) == (whole.best_epoch, whole.best_recall)

    def without_times(history):
        return [{k: v for k, v in entry.items() if k != "seconds"} for entry in history]

    assert without_times(resumed.history) == without_times(whole.history)


def test_refuses_a_state_of_another_model(arguments):
    states = []
    train_lightgcn(*arguments, **SETTINGS, max_epochs=1, on_checkpoint=states.append, checkpoint_seconds=0)
    with pytest.raises(ValueError, match=r"the state holds embeddings \[460, 16\].*\[460, 8\]"):
        train_lightgcn(*arguments, **{**SETTINGS, "dim": 8}, max_epochs=2, resume=states[0])


def test_a_diverging_run_says_so(arguments):
    with pytest.raises(ValueError, match=r"the loss is (nan|inf); lower learning_rate \(1e\+30\)"):
        train_lightgcn(*arguments, **{**SETTINGS, "learning_rate": 1e30}, max_epochs=5)


@pytest.mark.parametrize("split", [0, 1])
def test_refuses_an_empty_split(arguments, split):
    arguments = list(arguments)
    arguments[split] = torch.zeros(2, 0, dtype=torch.int64)
    with pytest.raises(
        ValueError, match=f"{('train', 'val')[split]}: the split has no interactions.*preprocess.ratios"
    ):
        train_lightgcn(*arguments)


def test_refuses_repeated_and_unknown_pairs(arguments):
    train, val, users, items = arguments
    with pytest.raises(ValueError, match="occurs twice"):
        train_lightgcn(torch.cat([train, train[:, :1]], 1), val, users, items)
    with pytest.raises(ValueError, match=r"val: user 300 .* is not among the 300 users"):
        train_lightgcn(train, torch.tensor([[300], [0]]), users, items)


@pytest.mark.parametrize(
    ("name", "value"), [("dim", 0), ("batch_size", 0), ("patience", 0), ("layers", -1), ("seed", -1)]
)
def test_refuses_settings_out_of_range(arguments, name, value):
    with pytest.raises(ValueError, match=f"{name} = {value}"):
        train_lightgcn(*arguments, **{name: value})
