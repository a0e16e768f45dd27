"""The loop: what it minimises, stops at and keeps, and that a killed run ends like an unkilled one."""

import numpy as np
import pytest
import torch

from tests.unit.baselines.worlds import make_workspace
from xrec.baselines.corpus import Rows
from xrec.baselines.preparation import prepare
from xrec.baselines.state import TrainingState
from xrec.baselines.training import Trainer, schedule
from xrec.config.baseline import BaselineConfig

SMALL = {"hidden": 16, "heads": 2, "layers": 1, "vocabulary": 300, "batch_size": 8, "epochs": 3, "prompt_epochs": 2}
MODELS = ["att2seq", "nrt", "peter", "peter_plus", "pepler"]


@pytest.fixture(scope="module")
def workspace(tmp_path_factory):
    return make_workspace(tmp_path_factory.mktemp("baselines") / "w")


def nothing(*_):
    return None


def trainer_of(workspace, name: str, **changes) -> Trainer:
    config = BaselineConfig(name=name, **{**SMALL, **changes})
    prepared = prepare(workspace, config)
    return Trainer(prepared.model, prepared.phases, prepared.tokenizer, config.batch_size, config.patience, config.seed)


def weights(trainer: Trainer) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in trainer.model.state_dict().items()}


def same(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(value, second[name]) for name, value in first.items())


@pytest.mark.parametrize("name", MODELS)
def test_a_run_killed_after_any_epoch_ends_like_an_unkilled_one(workspace, name):
    states, whole = [], trainer_of(workspace, name)
    figures = whole.run(nothing, lambda state: states.append(state.to_bytes()))
    assert len(states) == (5 if name == "pepler" else 3)
    for saved in states[:: 2 if name == "pepler" else 1]:
        resumed, epochs = trainer_of(workspace, name, seed=0), []
        state = TrainingState.from_bytes(saved)
        done = state.step
        assert resumed.run(lambda epoch, _, seen=epochs: seen.append(epoch), nothing, state) == figures
        assert epochs == list(range(done + 1, len(states) + 1))
        assert same(weights(resumed), weights(whole))


def test_the_seed_determines_the_weights(workspace):
    runs = [trainer_of(workspace, "peter", seed=seed, epochs=1) for seed in (1, 1, 2)]
    for run in runs:
        run.run(nothing, nothing)
    assert same(weights(runs[0]), weights(runs[1]))
    assert not same(weights(runs[0]), weights(runs[2]))


def test_the_validation_loss_is_the_mean_over_all_tokens(workspace):
    trainer = trainer_of(workspace, "att2seq")
    phase = trainer.phases[0]
    trainer.model.eval().requires_grad_(False)
    total, tokens = 0.0, 0
    for row in range(len(phase.validation)):
        batch = phase.validation.batch(np.array([row]), trainer.tokenizer)
        total, tokens = total + float(trainer.model.losses(batch)["text"]) * batch.tokens, tokens + batch.tokens
    assert trainer.validate(phase)["val/loss"] == pytest.approx(total / tokens, rel=1e-5)


def test_the_best_epochs_weights_are_kept_and_patience_ends_the_phase(workspace):
    trainer, kept, losses = trainer_of(workspace, "att2seq", epochs=12, patience=2), [], []
    falling = iter([3.0, 2.0, 2.5, 2.2, 1.0])
    trainer.validate = lambda phase: {"val/loss": next(falling)}

    def remember(step, figures):
        kept.append(weights(trainer))
        losses.append(figures["text/val/loss"])

    figures = trainer.run(remember, nothing)
    assert losses == [3.0, 2.0, 2.5, 2.2]
    assert figures == {"text/val/loss": 2.0, "text/epochs": 4, "text/best_epoch": 2}
    assert same(weights(trainer), kept[1])
    assert not same(weights(trainer), kept[3])


def test_without_validation_rows_the_last_epoch_counts(workspace):
    trainer, kept = trainer_of(workspace, "nrt"), []
    none = Rows(*(np.empty(0, np.int64),) * 2, [], np.empty(0, np.float32), [])
    trainer.phases[0].validation = none
    figures = trainer.run(lambda *_: kept.append(weights(trainer)), nothing)
    assert figures == {"text/epochs": 3, "text/best_epoch": 3}
    assert same(weights(trainer), kept[2])


def test_pepler_tunes_prompts_before_the_language_model(workspace):
    trainer, after = trainer_of(workspace, "pepler", epochs=4), []
    trainer.run(lambda *_: after.append(weights(trainer)), nothing)
    changed = [
        {
            side
            for side in ("language", "users", "items")
            for n in a
            if n.startswith(side) and not torch.equal(b[n], a[n])
        }
        for b, a in zip(after[1:], after, strict=False)
    ]
    # Two epochs a phase; between phases the best epoch's weights may return.
    assert changed[0] == {"language"}
    assert changed[2] == {"users", "items"}
    assert changed[4] == {"language", "users", "items"}


def test_training_lowers_the_loss(workspace):
    trainer, log = trainer_of(workspace, "peter", epochs=8, learning_rate=2e-2, patience=8), []
    trainer.run(lambda _, figures: log.append(figures), nothing)
    assert log[-1]["text/train/text"] < 0.5 * log[0]["text/train/text"]


def test_the_learning_rate_rises_and_falls_to_nothing():
    shares = [schedule(step, 100) for step in range(100)]
    assert shares[:5] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
    assert shares[5:] == pytest.approx([(100 - step) / 95 for step in range(5, 100)])
    assert schedule(0, 1) == 1


def test_a_loss_that_is_no_number_ends_training(workspace):
    trainer = trainer_of(workspace, "att2seq")
    losses = trainer.phases[0].losses
    trainer.phases[0].losses = lambda batch: {k: v * float("nan") for k, v in losses(batch).items()}
    with pytest.raises(ValueError, match=r"lower baseline.learning_rate \(0.003\)"):
        trainer.run(nothing, nothing)


def test_a_damaged_state_is_refused():
    with pytest.raises(ValueError, match="training state"):
        TrainingState.from_bytes(b"not a state")
