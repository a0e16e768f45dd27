"""The tuning loop against a loop of plain PyTorch, its schedule against closed forms, and resuming bit for bit."""

import numpy as np
import pytest
import torch
from transformers import get_cosine_schedule_with_warmup

from tests.tiny_world import DIM, make_workspace, tune_config
from xrec.config import TuneConfig
from xrec.explainer import tuning
from xrec.explainer.adapter import AdapterSpec, XRecAdapter, draw_randomness
from xrec.explainer.batching import collate, plan_epoch
from xrec.explainer.model import XRecModel, load_backbone
from xrec.explainer.pairs import PairTexts, explained_pairs
from xrec.explainer.prompt import PromptBuilder
from xrec.explainer.tuning import LOSS, SHUFFLED_LOSS, Tuner, assemble, dtype_of, learning_rate, phases_of
from xrec.explainer.tuning_data import load_tuning_data
from xrec.explainer.tuning_engine import (
    EngineState,
    Progress,
    TorchEngine,
    checkpoint_activations,
    load_checkpoint,
    load_weights,
    save_checkpoint,
)
from xrec.explainer.vectors import derangement
from xrec.workspace import WorkspaceError


@pytest.fixture(scope="module")
def workspace(tmp_path_factory):
    return make_workspace(tmp_path_factory.mktemp("world"))


def build(workspace, config):
    folder = workspace.path("backbone", "model")
    return assemble(workspace, config, folder, *load_backbone(folder))


class Log(list):
    def __call__(self, step, figures):
        self.append((step, dict(figures)))

    def losses(self, name):
        return [figures[name] for _, figures in self if name in figures]


def run(workspace, config, micro_batch=None, checkpointing=False):
    model, data = build(workspace, config)
    log = Log()
    engine = TorchEngine(model, config, gradient_checkpointing=checkpointing)
    progress = Tuner(engine, data, config, micro_batch, log).run()
    return progress, engine.state(), log


def by_hand(workspace, config):
    """The same training written out: one row at a time, the whole loss in float64, the schedule as an array."""
    model, data = build(workspace, config)
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=config.learning_rate, weight_decay=config.weight_decay)
    losses, validations = [], []
    for rows, epochs in ((data.warmup, config.warmup_epochs), (data.train, config.epochs)):
        lengths = [len(row.token_ids) for row in rows]
        steps = [s for e in range(epochs) for s in plan_epoch(lengths, config.batch_size, config.seed, e)]
        rising = round(config.warmup_share * len(steps))
        falling = np.linspace(0, np.pi, len(steps) - rising, endpoint=False)
        rates = config.learning_rate * np.concatenate([np.linspace(0, 1, rising + 1)[1:], 0.5 + 0.5 * np.cos(falling)])
        for chosen, rate in zip(steps, rates, strict=True):
            tokens = sum(rows[i].target_length for i in chosen)
            optimizer.zero_grad()
            summed = sum(backward_by_hand(model, data, rows, i, len(losses), tokens, config) for i in chosen.tolist())
            torch.nn.utils.clip_grad_norm_(parameters, config.clip)
            optimizer.param_groups[0]["lr"] = rate
            optimizer.step()
            losses.append(summed / tokens)
            if rows is data.train and len(losses) % config.validate_every == 0:
                validations.append(validation_by_hand(model, data))
    return losses, validations, {n: p.detach().clone() for n, p in model.adapter.named_parameters()}


def backward_by_hand(model, data, rows, i, step, tokens, config):
    batch, settings = collate([rows[i]], data.user, data.item, 0), config.adapter
    draws = draw_randomness(config.seed, step, [i], settings.experts, DIM, settings.dropout)
    logits = model(**{k: v for k, v in batch.tensors().items() if k != "labels"}, randomness=draws)[0, :-1]
    targets = batch.labels[0, 1:]
    kept = targets != -100
    loss = -logits[kept].double().log_softmax(-1).gather(1, targets[kept, None]).sum()
    (loss / tokens).backward()
    return loss.item()


@torch.no_grad()
def validation_by_hand(model, data, user=None, item=None):
    summed, tokens = 0.0, 0
    for row in data.validation:
        batch = collate([row], data.user if user is None else user, data.item if item is None else item, 0)
        summed += model(**batch.tensors()).item()
        tokens += row.target_length
    return summed / tokens


def test_the_loop_does_what_plain_pytorch_does(workspace):
    config = tune_config(warmup_share=0.1, epochs=2, batch_size=5)
    _, state, log = run(workspace, config)
    losses, validations, weights = by_hand(workspace, config)
    found = log.losses("warmup/nll_per_token") + log.losses("train/nll_per_token")
    assert len(found) >= 20
    np.testing.assert_allclose(found, losses, atol=2e-5)
    np.testing.assert_allclose(log.losses(LOSS)[: len(validations)], validations, atol=2e-5)
    for name, value in weights.items():
        torch.testing.assert_close(state.weights[name], value, atol=2e-4, rtol=0)


@pytest.mark.parametrize("micro_batch, checkpointing", [(1, False), (3, True)])
def test_the_curve_does_not_depend_on_the_pieces(workspace, micro_batch, checkpointing):
    config = tune_config(epochs=2)
    _, whole, expected = run(workspace, config)
    _, pieces, log = run(workspace, config, micro_batch, checkpointing)
    for name in ("train/nll_per_token", LOSS, SHUFFLED_LOSS):
        np.testing.assert_allclose(log.losses(name), expected.losses(name), atol=1e-5)
    for name, value in whole.weights.items():
        torch.testing.assert_close(pieces.weights[name], value, atol=1e-4, rtol=0)


def test_activation_checkpointing_recomputes_without_dropout(workspace):
    config = tune_config()
    model, data = build(workspace, config)
    checkpoint_activations(model)
    calls = []
    model.backbone.model.layers[0].mlp.register_forward_pre_hook(lambda *_: calls.append(1))
    model(**collate(data.train[:2], data.user, data.item, 0).tensors()).backward()
    assert len(calls) == 2, "one forward, one recomputation"
    assert not model.backbone.model.layers[0].self_attn.training


def test_only_the_adapter_moves(workspace):
    config = tune_config()
    model, data = build(workspace, config)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    Tuner(TorchEngine(model, config), data, config).run()
    moved = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    trainable = {f"adapter.{name}" for name, _ in model.adapter.trainable_parameters()}
    assert moved == trainable == {name for name, p in model.named_parameters() if p.requires_grad}


@pytest.mark.parametrize("steps, rising", [(20, 0), (20, 4), (7, 7), (1, 0), (1, 1)])
def test_schedule_is_the_closed_form(steps, rising):
    rates = [learning_rate(s, steps, rising, 0.5) for s in range(steps)]
    np.testing.assert_allclose(rates[:rising], 0.5 * (np.arange(rising) + 1) / max(1, rising))
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.5)
    reference = get_cosine_schedule_with_warmup(optimizer, rising, steps).lr_lambdas[0]
    np.testing.assert_allclose(rates[rising:], [0.5 * reference(s) for s in range(rising, steps)])
    assert max(rates) == 0.5 and min(rates) > 0


def test_resuming_is_bit_for_bit(workspace, tmp_path):
    expected_progress, expected, log = run(workspace, tune_config())
    # Step 8 is none of validation.
    config = tune_config(compute={"checkpoint_every": 4})
    for kill_at in (5, 8, 15):
        model, data = build(workspace, config)
        engine = TorchEngine(model, config)

        class Killed(Exception):
            pass

        def save(progress, engine=engine, adapter=model.adapter, kill_at=kill_at):
            if progress.step == kill_at:
                (tmp_path / str(kill_at)).mkdir()
                save_checkpoint(tmp_path / str(kill_at), engine.state(), progress, adapter.spec)
                raise Killed

        with pytest.raises(Killed):
            Tuner(engine, data, config, save=save).run()
        state, progress, spec = load_checkpoint(tmp_path / str(kill_at))
        assert progress.step == kill_at and isinstance(spec, AdapterSpec)
        model, data = build(workspace, config)
        engine, resumed = TorchEngine(model, config, state), Log()
        progress = Tuner(engine, data, config, log=resumed).run(progress)
        after = [(step, figures) for step, figures in log if step > kill_at]
        assert resumed == after
        final = engine.state()
        assert final.weights.keys() == expected.weights.keys() and final.moments.keys() == expected.moments.keys()
        for ours, theirs in ((final.weights, expected.weights), (final.moments, expected.moments)):
            assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
        assert all(torch.equal(progress.best[name], expected_progress.best[name]) for name in progress.best)
        assert vars(progress).keys() == vars(expected_progress).keys()
        for name in ("step", "best_step", "best_loss", "best_shuffled", "stale", "finished"):
            assert getattr(progress, name) == getattr(expected_progress, name)


def test_stops_early_and_keeps_the_best(workspace):
    # A rate at which the loss goes up soon.
    config = tune_config(learning_rate=0.5, epochs=30, validate_every=2, patience=3)
    progress, state, log = run(workspace, config)
    losses = log.losses(LOSS)
    steps = [step for step, figures in log if LOSS in figures]
    best = int(np.argmin(losses))
    assert progress.finished and progress.step < phases_of(build(workspace, config)[1], config)[-1].steps
    assert len(losses) - 1 - best == 3 and progress.stale == 3
    assert progress.best_step == steps[best] and progress.best_loss == losses[best]
    model, data = build(workspace, config)
    adapter = tuning.finish_adapter(model.adapter, state, progress)
    assert not all(torch.equal(state.weights[n], p) for n, p in adapter.named_parameters())
    assert validation_by_hand(model, data) == pytest.approx(progress.best_loss, abs=1e-5)


def test_shuffled_validation_uses_other_nodes(workspace):
    config = tune_config()
    model, data = build(workspace, config)
    tuner = Tuner(TorchEngine(model, config), data, config)
    user, item = data.user[derangement(len(data.user), 0)], data.item[derangement(len(data.item), 1)]
    assert tuner.validate(shuffled=True) == pytest.approx(validation_by_hand(model, data, user, item), abs=1e-5)
    assert tuner.validate() == pytest.approx(validation_by_hand(model, data), abs=1e-5)


def test_warm_up_speaks_of_training_nodes_only(workspace):
    config = tune_config()
    tokenizer = load_backbone(workspace.path("backbone", "model"))[1]
    data = load_tuning_data(workspace, config, tokenizer)
    pairs = explained_pairs(workspace, "train").to_pydict()
    assert {row.user for row in data.warmup if row.user >= 0} == set(pairs["user"])
    assert {row.item for row in data.warmup if row.item >= 0} == set(pairs["item"])
    texts = PairTexts.load(workspace)
    for row in data.warmup:
        text = tokenizer.decode(row.token_ids[-row.target_length :], skip_special_tokens=True).strip()
        title_and_profile = f"{texts.titles[row.item]}. {texts.item_profiles[row.item]}" if row.item >= 0 else None
        assert text == (title_and_profile or texts.user_profiles[row.user])
    held_out = explained_pairs(workspace, "test").to_pylist() + explained_pairs(workspace, "val").to_pylist()
    trained = {(row.user, row.item) for row in data.train}
    assert not trained & {(pair["user"], pair["item"]) for pair in held_out}


def test_rows_that_do_not_fit_are_counted(workspace):
    tokenizer = load_backbone(workspace.path("backbone", "model"))[1]
    data = load_tuning_data(workspace, tune_config(), tokenizer)
    assert data.dropped == {"train": 0, "val": 0, "warmup": 0}
    builder, titles = PromptBuilder(tokenizer), PairTexts.load(workspace).titles
    shortest = [
        len(builder.explain(titles[pair["item"]]).token_ids) + len(builder.target(pair["explanation"]))
        for pair in explained_pairs(workspace, "train").to_pylist()
    ]
    limit = int(np.median(shortest))
    short = load_tuning_data(workspace, tune_config(max_length=limit), tokenizer)
    assert 0 < short.dropped["train"] == sum(length > limit for length in shortest)
    assert len(short.train) == sum(length <= limit for length in shortest)
    with pytest.raises(WorkspaceError, match="max_length = 20"):
        load_tuning_data(workspace, tune_config(max_length=20), tokenizer)


def test_normalisation_leaves_zero_shot_nodes_out(workspace):
    model, data = build(workspace, tune_config())
    trained = ~workspace.read_table("preprocess", "users")["zero_shot"].to_numpy()
    assert 0 < trained.sum() < len(trained)
    reference = data.user.numpy()[trained]
    np.testing.assert_allclose(model.adapter.user.mean.numpy(), reference.mean(0), atol=1e-6)
    np.testing.assert_allclose(1 / model.adapter.user.scale.numpy(), reference.std(0), atol=1e-5)
    plain, _ = build(workspace, tune_config(adapter={"normalize": "none"}))
    assert torch.equal(plain.adapter.user.mean, torch.zeros(DIM))


def test_tune_returns_an_adapter_that_can_be_shared(workspace, tmp_path):
    config = tune_config(epochs=2)
    adapter, figures = tuning.tune(workspace, config, device="cpu")
    assert figures[LOSS] == pytest.approx(run(workspace, config)[0].best_loss)
    assert figures["train/rows"] == len(explained_pairs(workspace, "train"))
    adapter.save_pretrained(tmp_path / "adapter")
    again = XRecAdapter.from_pretrained(tmp_path / "adapter")
    assert again.spec == adapter.spec and adapter.spec.prompt_hash and adapter.spec.backbone_hash
    backbone, _ = load_backbone(workspace.path("backbone", "model"))
    _, data = build(workspace, config)
    assert validation_by_hand(XRecModel(backbone, again), data) == pytest.approx(figures[LOSS], abs=1e-5)


def test_a_foreign_checkpoint_is_refused(tmp_path):
    with pytest.raises(ValueError, match="no tuning checkpoint"):
        load_checkpoint(tmp_path)
    adapter = XRecAdapter(AdapterSpec(4, 6, experts=2))
    with pytest.raises(ValueError, match=r"'user.gate' is \(3, 3\), not \(4, 2\)"):
        load_weights(adapter, {n: torch.zeros(3, 3) for n, _ in adapter.trainable_parameters()})
    save_checkpoint(tmp_path, EngineState({"a": torch.ones(2)}), Progress(step=3), adapter.spec)
    state, progress, spec = load_checkpoint(tmp_path)
    assert torch.equal(state.weights["a"], torch.ones(2)) and progress == Progress(step=3) and spec == adapter.spec


def test_precision_follows_the_device():
    assert dtype_of(TuneConfig(), torch.device("cpu")) == torch.float32
    assert dtype_of(TuneConfig(), torch.device("cuda")) == torch.bfloat16
    assert dtype_of(TuneConfig(precision="float32"), torch.device("cuda")) == torch.float32
