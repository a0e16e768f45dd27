"""Each system's losses against computations of their own: loops, the papers' equations, PyTorch's own layers."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from tests.unit.baselines.worlds import tiny_shape
from xrec.baselines.att2seq import Att2Seq
from xrec.baselines.corpus import Batch
from xrec.baselines.model import RATING_WEIGHT
from xrec.baselines.nodes import UNKNOWN_SHARE, NodeEmbedding
from xrec.baselines.nrt import NRT
from xrec.baselines.pepler import Pepler, new_language_model
from xrec.baselines.peter import Block, Peter, peter_mask, sinusoids
from xrec.explainer.model import IGNORED

END = 1


@pytest.fixture
def batch() -> Batch:
    inputs = torch.tensor([[0, 4, 5, 6, 7], [0, 8, 9, 1, 1], [0, 4, 10, 5, 1]])
    labels = torch.tensor([[4, 5, 6, 7, END], [8, 9, END, IGNORED, IGNORED], [4, 10, 5, END, IGNORED]])
    feature = torch.tensor([[5, 6], [7, 1], [1, 1]])
    mask = torch.tensor([[True, True], [True, False], [False, False]])
    ratings = torch.tensor([4.0, float("nan"), 2.0])
    return Batch(torch.tensor([0, 1, 3]), torch.tensor([1, 0, 2]), inputs, labels, ratings, feature, mask)


def ready(model: nn.Module) -> nn.Module:
    """With known nodes, weights that matter, and no dropout."""
    torch.manual_seed(7)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.4)
    model.users.set_known([0, 1, 2])
    model.items.set_known([1, 3])
    return model.eval()


def systems(ratings: bool = True) -> dict[str, nn.Module]:
    shape = tiny_shape(ratings)
    pepler = Pepler(shape, new_language_model(shape, END))
    models = {"att2seq": Att2Seq(shape), "nrt": NRT(shape), "peter": Peter(shape), "peter_plus": Peter(shape, True)}
    return {name: ready(model) for name, model in {**models, "pepler": pepler}.items()}


def mean_nll(logits: torch.Tensor, labels: torch.Tensor) -> float:
    """By a loop over the labels that count."""
    terms = [
        -float(logits[b, t].double().softmax(-1)[labels[b, t]].log())
        for b in range(labels.shape[0])
        for t in range(labels.shape[1])
        if labels[b, t] != IGNORED
    ]
    return sum(terms) / len(terms)


@pytest.mark.parametrize("name", ["att2seq", "nrt", "peter", "peter_plus", "pepler"])
@torch.no_grad()
def test_generation_step_by_step_has_the_probabilities_that_training_sees(name, batch):
    model = systems()[name]
    logits, state = model.begin(batch)
    steps = [logits]
    for column in range(1, batch.inputs.shape[1]):
        logits, state = model.advance(batch.inputs[:, column], state)
        steps.append(logits)
    assert float(model.losses(batch)["text"]) == pytest.approx(mean_nll(torch.stack(steps, 1), batch.labels), abs=1e-5)


@pytest.mark.parametrize("name", ["att2seq", "nrt", "peter", "peter_plus", "pepler"])
@torch.no_grad()
def test_a_text_depends_on_its_user_and_its_item(name, batch):
    model = systems()[name]
    logits, _ = model.begin(batch)
    for side in ("user", "item"):
        other = Batch(**{**vars(batch), side: torch.tensor([1, 1, 1])})
        changed = (model.begin(other)[0] - logits).abs().amax(1) > 1e-4
        # Users 0 and 1 have embeddings of their own, users 3 and 4 share the unknown's; so have items 1 and 3.
        assert changed.tolist() == ([True, False, True] if side == "user" else [False, True, True])
    unknown = Batch(**{**vars(batch), "user": torch.tensor([0, 1, 4])})
    torch.testing.assert_close(model.begin(unknown)[0], logits)


@torch.no_grad()
def test_att2seq_attends_as_in_the_paper(batch):
    model = systems()["att2seq"]
    attributes = torch.randn(2, 2, 8)
    states = torch.randn(2, 3, 8)
    found = model.attention(states, attributes)
    for b in range(2):
        for t in range(3):
            scores = [math.tanh(float(model.score(torch.cat([states[b, t], attributes[b, a]])))) for a in range(2)]
            total = sum(math.exp(s) for s in scores)
            assert found[b, t].tolist() == pytest.approx([math.exp(s) / total for s in scores], abs=1e-6)


@torch.no_grad()
def test_att2seq_computes_what_its_equations_say(batch):
    """The first token's distribution of the first row, with an LSTM cell written out."""
    model = systems()["att2seq"]
    attributes = torch.stack([model.users(batch.user)[0], model.items(batch.item)[0]])
    start = torch.tanh(model.encoder(attributes.flatten()))
    entering = model.words(batch.inputs[0, 0])
    for layer in range(2):
        weights = {n: getattr(model.decoder, f"{n}_l{layer}") for n in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")}
        hidden = start[8 * layer : 8 * (layer + 1)]
        gates = weights["weight_ih"] @ entering + weights["bias_ih"] + weights["weight_hh"] @ hidden
        into, forget, new, out = (gates + weights["bias_hh"]).chunk(4)
        cell = torch.sigmoid(into) * torch.tanh(new) + torch.sigmoid(forget) * 0
        entering = torch.sigmoid(out) * torch.tanh(cell)
    weights = model.attention(entering.view(1, 1, -1), attributes.unsqueeze(0))[0, 0]
    context = weights[0] * attributes[0] + weights[1] * attributes[1]
    expected = model.output(torch.tanh(model.combine(torch.cat([context, entering]))))
    torch.testing.assert_close(model.begin(batch)[0][0], expected)


@torch.no_grad()
def test_nrt_joins_the_errors_of_text_and_known_ratings(batch):
    model = systems()["nrt"]
    pair = torch.cat([model.users(batch.user), model.items(batch.item)], 1)
    first, _, second, _, last = model.rating
    predicted = [3.5 + float(last(torch.sigmoid(second(torch.sigmoid(first(pair[row])))))) for row in range(len(pair))]
    error = ((predicted[0] - 4) ** 2 + (predicted[2] - 2) ** 2) / 2
    losses = model.losses(batch)
    assert float(losses["rating"]) == pytest.approx(error, rel=1e-5)
    assert float(losses["total"]) == pytest.approx(float(losses["text"]) + RATING_WEIGHT * error, rel=1e-5)
    for row, value in enumerate(predicted):
        nearest = min(range(5), key=lambda level: abs(min(max(value, 1.0), 5.0) - (1 + level)))
        assert model.levels(torch.tensor(predicted))[row].argmax() == nearest


@pytest.mark.parametrize("name", ["nrt", "peter"])
@torch.no_grad()
def test_without_ratings_there_is_no_rating_loss(name, batch):
    model = systems(ratings=False)[name]
    losses = model.losses(batch)
    assert "rating" not in losses
    assert not any("rating" in key for key in model.state_dict())
    unrated = Batch(**{**vars(batch), "rating": torch.full((3,), float("nan"))})
    assert "rating" not in systems()[name].losses(unrated)


def test_peters_mask_lets_the_user_see_the_item():
    mask = peter_mask(6)
    for row in range(6):
        for column in range(6):
            assert bool(mask[row, column]) == (column <= row or (row, column) == (0, 1))
    assert peter_mask(1).tolist() == [[True]]


@torch.no_grad()
def test_peters_positions_see_what_the_mask_says():
    """By changing one input at a time and looking whose states change."""
    model = systems()["peter"]
    embedded = torch.randn(1, 5, 8)
    states = model._run(embedded)
    for changed in range(5):
        other = embedded.clone()
        other[0, changed] += 1
        affected = ((model._run(other) - states).abs().amax(-1)[0] > 1e-5).tolist()
        assert affected == [seer >= changed or (seer, changed) == (0, 1) for seer in range(5)]


@torch.no_grad()
def test_peters_layer_is_the_transformers():
    block = ready_block = Block(8, 2, 0.0)
    for parameter in ready_block.parameters():
        nn.init.normal_(parameter, std=0.3)
    layer = nn.TransformerEncoderLayer(8, 2, 16, 0.0, batch_first=True)
    names = {
        "self_attn.in_proj_weight": "projection.weight",
        "self_attn.in_proj_bias": "projection.bias",
        "self_attn.out_proj.weight": "merge.weight",
        "self_attn.out_proj.bias": "merge.bias",
        "linear1.weight": "widen.weight",
        "linear1.bias": "widen.bias",
        "linear2.weight": "narrow.weight",
        "linear2.bias": "narrow.bias",
        **{f"norm{n + 1}.{part}": f"norms.{n}.{part}" for n in range(2) for part in ("weight", "bias")},
    }
    ours = block.state_dict()
    layer.load_state_dict({theirs: ours[own] for theirs, own in names.items()})
    states, mask = torch.randn(3, 6, 8), peter_mask(6)
    expected = layer.train()(states, src_mask=~mask)
    torch.testing.assert_close(block(states, mask)[0], expected)


@torch.no_grad()
def test_peter_sums_text_context_and_rating(batch):
    model = systems()["peter"]
    before = torch.stack([model.users(batch.user), model.items(batch.item)], 1)
    states = model._run(torch.cat([before, model.words(batch.inputs)], 1))
    context = [
        -float(model.output(states[b, 1]).double().log_softmax(-1)[label])
        for b in range(3)
        for label in batch.labels[b].tolist()
        if label not in (IGNORED, END)
    ]
    rating = np.mean([(3.5 + float(model.rating(states[b, 0])) - float(batch.rating[b])) ** 2 for b in (0, 2)])
    losses = model.losses(batch)
    text = mean_nll(model.output(states[:, 2:]), batch.labels)
    assert float(losses["text"]) == pytest.approx(text, abs=1e-5)
    assert float(losses["context"]) == pytest.approx(np.mean(context), abs=1e-5)
    assert float(losses["rating"]) == pytest.approx(rating, rel=1e-5)
    assert float(losses["total"]) == pytest.approx(text + np.mean(context) + RATING_WEIGHT * rating, rel=1e-5)


@torch.no_grad()
def test_peter_plus_puts_the_mean_of_the_features_tokens_third(batch):
    model = systems()["peter_plus"]
    third = model._before(batch)[:, 2]
    words = model.words.weight
    torch.testing.assert_close(third, torch.stack([(words[5] + words[6]) / 2, words[7], torch.zeros(8)]))


def test_position_encodings_are_vaswanis():
    found = sinusoids(7, 6)
    for place in range(7):
        for pair in range(3):
            angle = place / 10000 ** (2 * pair / 6)
            assert found[place, 2 * pair : 2 * pair + 2].tolist() == pytest.approx(
                [math.sin(angle), math.cos(angle)], abs=1e-6
            )


@torch.no_grad()
def test_pepler_prompts_precede_the_text(batch):
    """Row by row, without padding, the sequence of embeddings laid out by hand."""
    model = systems()["pepler"]
    terms = []
    for b in range(3):
        length = int((batch.labels[b] != IGNORED).sum())
        user, item = model.users(batch.user[b : b + 1]), model.items(batch.item[b : b + 1])
        words = model.language.transformer.wte.weight[batch.inputs[b, :length]]
        logits = model.language(inputs_embeds=torch.cat([user, item, words]).unsqueeze(0)).logits[0, 2:]
        terms += [-logits[t].double().log_softmax(-1)[batch.labels[b, t]] for t in range(length)]
    assert float(model.losses(batch)["text"]) == pytest.approx(float(sum(terms)) / len(terms), abs=1e-5)


def test_unknown_nodes_share_an_embedding_that_training_reaches():
    torch.manual_seed(0)
    table = NodeEmbedding(6, 2, 4)
    table.set_known([4, 1])
    nodes = torch.tensor([0, 1, 4, 5])
    assert table.eval().rows.tolist() == [0, 2, 0, 0, 1, 0]
    torch.testing.assert_close(table(nodes), table.table.weight[[0, 2, 1, 0]])
    table.train()
    taken = (table(torch.full((20000,), 1)) == table.table.weight[0]).all(1).float().mean()
    assert float(taken) == pytest.approx(UNKNOWN_SHARE, abs=0.01)
    with pytest.raises(ValueError, match="room for 2"):
        table.set_known([1, 2, 3])
