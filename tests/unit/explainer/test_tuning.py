"""The tuning loop against a loop of plain PyTorch, its schedule against closed forms, and resuming bit for bit."""

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from transformers import get_cosine_schedule_with_warmup

from tests.tiny_world import DIM, make_workspace, tune_config
from xrec.config import ConfigError, TuneConfig
from xrec.embeddings import Embeddings
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
    lengths = sorted(len(row) for row in data.train)
    limit, prompt = lengths[len(lengths) // 2], {"max_profile_tokens": 40, "max_tokens": 150}
    short = load_tuning_data(workspace, tune_config(max_length=limit, prompt=prompt), tokenizer)
    assert 0 < short.dropped["train"] == sum(length > limit for length in lengths)
    assert sorted(len(row) for row in short.train) == [length for length in lengths if length <= limit]
    shortest = len(PromptBuilder(tokenizer).explain("").token_ids)
    with pytest.raises(WorkspaceError, match=f"max_length = {shortest + 1}: none of"):
        tight = tune_config(max_length=shortest + 1, prompt={"max_tokens": shortest})
        load_tuning_data(workspace, tight, tokenizer)


def test_settings_that_leave_explanations_no_room_are_refused(workspace):
    with pytest.raises(ValueError, match="max_length = 150 leaves no room .* prompt.max_tokens = 150 tokens; raise"):
        tune_config(max_length=150)
    with pytest.raises(ConfigError, match="tune.max_length = 257, but the backbone reads at most 256 tokens"):
        tuning.tune(workspace, tune_config(max_length=257), device="cpu")


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


class BadEngine(TorchEngine):
    """Breaks chosen steps, counted from 0: a loss that is NaN, or a gradient of the user's vectors that is infinite."""

    def __init__(self, model, config, bad_losses=(), bad_gradients=()):
        super().__init__(model, config)
        self.bad_losses, self.bad_gradients, self.calls = bad_losses, bad_gradients, 0
        user = model.adapter.user
        user.register_forward_hook(lambda module, args, output: self._poison(output))

    def _poison(self, output):
        if output.requires_grad and self.calls in self.bad_gradients:
            output.register_hook(lambda gradient: gradient / 0.0)
        return output

    def losses(self, batch, randomness=None):
        found = super().losses(batch, randomness)
        return found * float("nan") if found.requires_grad and self.calls in self.bad_losses else found

    def step(self, learning_rate, apply=True):
        taken = super().step(learning_rate, apply)
        self.calls += 1
        return taken


@pytest.mark.parametrize("fault", ["bad_losses", "bad_gradients"])
def test_a_step_that_is_not_finite_is_skipped_and_counted(workspace, fault):
    config, saved = tune_config(warmup_epochs=0), {}
    model, data = build(workspace, config)
    engine, log = BadEngine(model, config, **{fault: (2, 5)}), Log()
    snapshots = Log()

    def record(step, figures):
        log(step, figures)
        snapshots.append((step, engine.state()))

    progress = Tuner(engine, data, config, log=record, save=lambda p: saved.update({p.step: p.skipped})).run()
    assert [step for step, figures in log if "train/skipped" in figures] == [3, 6]
    assert progress.skipped == 2 and progress.skipped_in_a_row == 0
    states = dict(snapshots)
    for step in (3, 6):
        for kind in ("weights", "moments"):
            before, after = getattr(states[step - 1], kind), getattr(states[step], kind)
            assert all(torch.equal(before[name], after[name]) for name in before), f"step {step} moved {kind}"
        assert not all(torch.equal(states[step].weights[n], states[step + 1].weights[n]) for n in states[3].weights)
    assert all(torch.isfinite(value).all() for value in progress.best.values())
    assert tuning.final_metrics(progress, data)["steps_skipped"] == 2


def test_a_run_that_stays_not_finite_ends_and_says_where(workspace):
    config = tune_config(warmup_epochs=0)
    model, data = build(workspace, config)
    before = {name: value.clone() for name, value in model.adapter.state_dict().items()}
    with pytest.raises(tuning.TuningDiverged, match=r"steps 1 to 3 of \d+ .*user \d+, item \d+.*learning rate .*lower"):
        Tuner(BadEngine(model, config, bad_losses=range(99)), data, config).run()
    assert all(torch.equal(before[name], value) for name, value in model.adapter.state_dict().items())


def test_a_validation_that_is_not_finite_is_never_the_best(workspace):
    config = tune_config(warmup_epochs=0, patience=99)
    model, data = build(workspace, config)

    class Blind(Tuner):
        found = iter([float("nan"), float("nan"), 2.0, 2.0, float("inf"), float("inf")])

        def validate(self, shuffled=False):
            return next(self.found, 3.0)

    progress = Blind(TorchEngine(model, config), data, config).run()
    assert (progress.best_step, progress.best_loss) == (10, 2.0)

    class Never(Tuner):
        def validate(self, shuffled=False):
            return float("nan")

    with pytest.raises(tuning.TuningDiverged, match="validation losses was finite"):
        Never(TorchEngine(model, config), data, config).run()


def test_weights_that_are_not_finite_are_neither_saved_nor_loaded(tmp_path):
    adapter = XRecAdapter(AdapterSpec(4, 6, experts=2))
    bad = {"a": torch.tensor([1.0, float("nan")])}
    with pytest.raises(ValueError, match="checkpoint of step 7 .* 1 of 2 values of 'a' are not finite"):
        save_checkpoint(tmp_path, EngineState(bad), Progress(step=7), adapter.spec)
    save_checkpoint(tmp_path, EngineState({"a": torch.ones(2)}), Progress(step=7), adapter.spec)
    save_file(bad, tmp_path / "adapter.safetensors")
    with pytest.raises(ValueError, match="adapter.safetensors: 1 of 2 values of 'a'"):
        load_checkpoint(tmp_path)


def test_embeddings_that_are_not_finite_are_rejected(tmp_path):
    broken = make_workspace(tmp_path)
    stage = broken.stage("embed", {}, force=True)
    user = torch.randn(3, 14, DIM)
    user[0, 2, 1] = float("inf")
    Embeddings(user, torch.randn(3, 10, DIM)).save(f"{broken.root}/embed/embeddings.safetensors")
    stage.finish({})
    with pytest.raises(ValueError, match="embeddings.safetensors: 1 of .* values of 'user' are not finite"):
        build(broken, tune_config())


def test_row_limits_choose_by_the_seed(workspace):
    tokenizer = load_backbone(workspace.path("backbone", "model"))[1]
    whole = load_tuning_data(workspace, tune_config(), tokenizer)
    few, again, other = (
        load_tuning_data(workspace, tune_config(max_train_rows=9, max_validation_rows=4, seed=s), tokenizer)
        for s in (1, 1, 2)
    )
    pairs = [[(row.user, row.item) for row in data.train] for data in (whole, few, again, other)]
    assert len(pairs[1]) == 9 and len(few.validation) == 4 and len(whole.validation) > 4
    assert pairs[1] == pairs[2] != pairs[3] and set(pairs[1]) < set(pairs[0])


@pytest.mark.parametrize("normalize", ["none", "standardize"])
@pytest.mark.parametrize("align", ["none", "profiles"])
def test_vectors_start_in_units_of_the_backbones_embeddings(workspace, normalize, align):
    config = tune_config(adapter={"normalize": normalize, "initial_scale": 0.25}, align=align)
    model, data = build(workspace, config)
    table = model.backbone.get_input_embeddings().weight
    expected = 0.25 * float(table.square().mean().sqrt())
    trained = ~workspace.read_table("preprocess", "users")["zero_shot"].to_numpy()
    with torch.no_grad():
        vectors = model.adapter.user(data.user[torch.from_numpy(trained)])
    assert float(vectors.square().mean().sqrt()) == pytest.approx(expected, rel=1e-3)
