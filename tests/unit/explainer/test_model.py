"""The loss against plain per-row computation, padding, freezing, and what loading refuses."""

import copy

import pytest
import torch

from tests.unit.explainer.decoders import FAMILIES, make_decoder, reference_logits
from xrec.explainer.adapter import AdapterSpec, XRecAdapter
from xrec.explainer.model import IGNORED, XRecModel, backbone_hash, embedding_table, load_backbone, positions_of

ROWS = [([0, 17, 3, 25, 3], [40, 41, 1]), ([0, 3, 3], [50, 1]), ([0, 9, 9, 9, 3, 8, 3, 7], [60, 61, 62, 63, 1])]


def batch(rows):
    """Left-padded tensors; the two reserved ids (3) of a row are user, then item."""
    width = max(len(p) + len(t) for p, t in rows)
    ids, attention, labels = torch.full((len(rows), width), 2), torch.zeros(len(rows), width).long(), None
    labels = torch.full((len(rows), width), IGNORED)
    masks = torch.zeros(2, len(rows), width, dtype=torch.bool)
    for i, (prompt, target) in enumerate(rows):
        start = width - len(prompt) - len(target)
        ids[i, start:] = torch.tensor(prompt + target)
        attention[i, start:] = 1
        labels[i, width - len(target) :] = torch.tensor(target)
        for side, position in enumerate(j for j, t in enumerate(prompt) if t == 3):
            masks[side, i, start + position] = True
    return ids, attention, masks[0], masks[1], labels


@pytest.fixture
def model():
    torch.manual_seed(3)
    adapter = XRecAdapter(AdapterSpec(embedding_dim=6, hidden_size=32, experts=3))
    return XRecModel(make_decoder("llama-grouped-query"), adapter)


def test_loss_equals_rows_one_by_one_without_padding(model):
    user, item = torch.randn(3, 6), torch.randn(3, 6)
    ids, attention, user_mask, item_mask, labels = batch(ROWS)
    with torch.no_grad():
        found = model(ids, attention, user_mask, item_mask, user, item, labels, reduction="none")
        total = model(ids, attention, user_mask, item_mask, user, item, labels)
    plain = copy.deepcopy(make_decoder("llama-grouped-query"))
    for i, (prompt, target) in enumerate(ROWS):
        with torch.no_grad():
            vectors = torch.stack([model.adapter.user(user[i : i + 1])[0], model.adapter.item(item[i : i + 1])[0]])
        positions = [j for j, t in enumerate(prompt) if t == 3]
        logprobs = reference_logits(plain, prompt + target, positions, vectors).log_softmax(-1)
        expected = -sum(float(logprobs[len(prompt) - 1 + j, t]) for j, t in enumerate(target))
        assert float(found[i]) == pytest.approx(expected, abs=1e-3)
    assert float(total) == pytest.approx(float(found.sum()), rel=1e-5)


def test_logits_cover_every_position_where_no_labels_are_given(model):
    ids, attention, user_mask, item_mask, _ = batch(ROWS)
    logits = model(ids, attention, user_mask, item_mask, torch.randn(3, 6), torch.randn(3, 6))
    assert logits.shape == (*ids.shape, 300)


def test_only_the_adapter_learns(model):
    ids, attention, user_mask, item_mask, labels = batch(ROWS)
    model(ids, attention, user_mask, item_mask, torch.randn(3, 6), torch.randn(3, 6), labels).backward()
    learning = {n for n, p in model.named_parameters() if p.requires_grad}
    assert learning == {f"adapter.{n}" for n, _ in model.adapter.trainable_parameters()}
    assert all(p.grad is None for p in model.backbone.parameters())
    assert model.adapter.user.expert_weight.grad.abs().max() > 0
    assert model.adapter.item.expert_weight.grad.abs().max() > 0


def test_positions_count_from_the_first_real_token():
    assert positions_of(torch.tensor([[0, 0, 1, 1], [1, 1, 1, 1]])).tolist() == [[0, 0, 0, 1], [0, 1, 2, 3]]


def test_widths_that_differ_are_refused():
    with pytest.raises(ValueError, match="width 16, the backbone's hidden size is 32"):
        XRecModel(make_decoder("mistral"), XRecAdapter(AdapterSpec(6, 16)))


def test_missing_backbone_is_named(tmp_path):
    with pytest.raises(ValueError, match="no/such-model"):
        load_backbone("no/such-model")
    with pytest.raises(ValueError, match=str(tmp_path)):
        load_backbone(str(tmp_path))


def test_backbone_hash_follows_weights_not_folders(tmp_path):
    hashes = []
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        model = make_decoder("llama-grouped-query", seed)
        model.save_pretrained(tmp_path / name)
        hashes.append(backbone_hash(str(tmp_path / name), model.config))
    assert hashes[0] == hashes[1] != hashes[2]


@pytest.mark.parametrize("family", FAMILIES)
def test_no_gradient_is_computed_before_the_first_reserved_position(family, monkeypatch):
    """The two passes give the loss and the gradients of one over the whole sequence."""
    found = []
    for whole in (True, False):
        torch.manual_seed(3)
        adapter = XRecAdapter(AdapterSpec(embedding_dim=6, hidden_size=32, experts=3))
        model, seen = XRecModel(make_decoder(family), adapter), []
        # What makes the model run the whole sequence at once.
        monkeypatch.setattr(type(model.backbone), "is_gradient_checkpointing", whole)
        model.backbone.get_decoder().layers[0].register_forward_pre_hook(
            lambda _, args, seen=seen: seen.append(args[0])
        )
        ids, attention, user_mask, item_mask, labels = batch(ROWS)
        loss = model(ids, attention, user_mask, item_mask, torch.ones(3, 6), torch.ones(3, 6), labels)
        loss.backward()
        found.append((loss.detach(), [p.grad for p in adapter.parameters() if p.grad is not None]))
        assert [h.shape[1] for h in seen] == ([13] if whole else [4, 9])
    torch.testing.assert_close(*(f[0] for f in found), atol=1e-3, rtol=1e-6)
    for expected, gradient in zip(*(f[1] for f in found), strict=True):
        torch.testing.assert_close(gradient, expected, atol=2e-5, rtol=1e-3)


def test_the_embedding_table_is_what_the_module_gives():
    model = make_decoder("gemma")
    stored, table = model.get_input_embeddings().weight, embedding_table(model)
    torch.testing.assert_close(table, stored.detach() * 32**0.5, atol=1e-5, rtol=1e-3)
