"""The mixture of experts against loops, and what is saved and shared."""

import json
import math

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from xrec.explainer.adapter import AdapterSpec, MoEAdapter, XRecAdapter, draw_randomness


def random_adapter(top_k=None) -> MoEAdapter:
    torch.manual_seed(0)
    adapter = MoEAdapter(6, 10, 4, top_k)
    with torch.no_grad():
        for parameter in adapter.parameters():
            parameter.normal_()
        adapter.fit_normalization(torch.randn(50, 6) * 3 + 1)
    return adapter


def by_loops(adapter: MoEAdapter, embedding, noise=None, keep=None, top_k=None):
    """One vector, expert by expert, in Python floats."""
    x = [(float(v) - float(m)) * float(s) for v, m, s in zip(embedding, adapter.mean, adapter.scale, strict=True)]
    logits = []
    for e in range(4):
        logit = sum(x[d] * float(adapter.gate[d, e]) for d in range(6))
        if noise is not None:
            z = sum(x[d] * float(adapter.gate_noise[d, e]) for d in range(6))
            logit += float(noise[e]) * (math.log1p(math.exp(z)) + 0.01)
        logits.append(logit)
    allowed = sorted(range(4), key=lambda e: -logits[e])[: top_k or 4]
    weights = {e: math.exp(logits[e] - max(logits)) for e in allowed}
    total = sum(weights.values())
    output = [0.0] * 10
    for e in allowed:
        for h in range(10):
            for d in range(6):
                kept = x[d] * (float(keep[e, d]) if keep is not None else 1.0)
                shifted = kept - float(adapter.expert_shift[e, d])
                output[h] += weights[e] / total * shifted * float(adapter.expert_weight[e, d, h])
    return torch.tensor(output)


@pytest.mark.parametrize("top_k", [None, 2])
def test_the_mixture_equals_a_loop_over_experts(top_k):
    adapter, embeddings = random_adapter(top_k), torch.randn(3, 6)
    expected = torch.stack([by_loops(adapter, e, top_k=top_k) for e in embeddings])
    torch.testing.assert_close(adapter(embeddings), expected, atol=1e-4, rtol=1e-4)


def test_training_noise_and_dropout_equal_a_loop():
    adapter, embeddings = random_adapter(), torch.randn(3, 6)
    draws = draw_randomness(7, 11, [4, 0, 9], 4, 6, 0.5).user
    expected = torch.stack([by_loops(adapter, embeddings[i], draws.gate_noise[i], draws.keep[i]) for i in range(3)])
    torch.testing.assert_close(adapter(embeddings, draws), expected, atol=1e-4, rtol=1e-4)


def test_randomness_belongs_to_the_row_not_to_the_batch():
    whole, part = draw_randomness(1, 5, [3, 8, 2], 4, 6, 0.2), draw_randomness(1, 5, [8], 4, 6, 0.2)
    assert torch.equal(whole.user.gate_noise[1:2], part.user.gate_noise)
    assert torch.equal(whole.item.keep[1:2], part.item.keep)
    assert not torch.equal(whole.user.gate_noise, whole.item.gate_noise)
    for other in (draw_randomness(1, 6, [8], 4, 6, 0.2), draw_randomness(2, 5, [8], 4, 6, 0.2)):
        assert not torch.equal(other.user.gate_noise, part.user.gate_noise)


def test_draws_have_the_stated_distributions():
    draws = draw_randomness(0, 0, list(range(4000)), 4, 8, 0.2)
    assert abs(draws.user.gate_noise.mean()) < 0.03 and abs(draws.user.gate_noise.std() - 1) < 0.03
    assert abs((draws.item.keep == 0).float().mean() - 0.2) < 0.01
    assert abs(draws.item.keep.mean() - 1) < 0.02


def test_normalization_standardises_inputs():
    adapter, data = MoEAdapter(3, 4, 2), torch.randn(500, 3) * torch.tensor([1.0, 5.0, 0.1]) + 7
    adapter.fit_normalization(data)
    scaled = (data - adapter.mean) * adapter.scale
    torch.testing.assert_close(scaled.mean(0), torch.zeros(3), atol=1e-4, rtol=0)
    torch.testing.assert_close(scaled.var(0, correction=0), torch.ones(3), atol=1e-3, rtol=0)


def test_saved_keys_files_and_reload(tmp_path):
    torch.manual_seed(0)
    adapter = XRecAdapter(AdapterSpec(6, 10, 4, top_k=2, backbone="b", prompt={"order": "paper"}))
    adapter.fit_normalization(torch.randn(9, 6), torch.randn(9, 6))
    adapter.save_pretrained(tmp_path)
    assert {p.name for p in tmp_path.iterdir()} == {"adapter.safetensors", "config.json", "README.md"}
    names = ("mean", "scale", "output_scale", "gate", "gate_noise", "expert_shift", "expert_weight")
    with safe_open(tmp_path / "adapter.safetensors", framework="pt") as file:
        assert set(file.keys()) == {f"{side}.{name}" for side in ("user", "item") for name in names}
    trainable = {name for name, _ in adapter.trainable_parameters()}
    assert trainable == {f"{side}.{name}" for side in ("user", "item") for name in names[3:]}
    loaded, vectors = XRecAdapter.from_pretrained(tmp_path), torch.randn(5, 6)
    assert loaded.spec == adapter.spec
    assert torch.equal(loaded.user(vectors), adapter.user(vectors))
    card = (tmp_path / "README.md").read_text()
    assert "library_name: xrec" in card and "license: apache-2.0" in card


def test_unknown_config_field_and_missing_file_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="config.json"):
        XRecAdapter.from_pretrained(tmp_path)
    XRecAdapter(AdapterSpec(6, 10, 4)).save_pretrained(tmp_path)
    values = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(values | {"colour": 1}))
    with pytest.raises(ValueError, match="colour"):
        XRecAdapter.from_pretrained(tmp_path)


@pytest.mark.parametrize(("field", "value"), [("top_k", 9), ("top_k", 0), ("injection", "sideways")])
def test_bad_specs_are_refused(field, value):
    with pytest.raises(ValueError, match=field):
        AdapterSpec(6, 10, 4, **{field: value})


def test_the_output_scale_sets_the_size_of_vectors_and_of_steps():
    torch.manual_seed(0)
    users, items = torch.randn(200, 6), torch.randn(200, 6) * 1e-3
    adapter = XRecAdapter(AdapterSpec(6, 10, 4))
    adapter.fit_output_scale(users, items, 0.02)
    for side, nodes in (("user", users), ("item", items)):
        vectors = getattr(adapter, side)(nodes).detach().numpy()
        assert np.sqrt((vectors.astype(np.float64) ** 2).mean()) == pytest.approx(0.02, rel=1e-4)
        # A change of every weight by 1 % of their size changes the vectors by no more than that share of theirs.
        weight = getattr(adapter, side).expert_weight
        with torch.no_grad():
            weight += 0.01 * weight.std() * torch.randn_like(weight)
        moved = getattr(adapter, side)(nodes).detach().numpy() - vectors
        assert 0.002 < np.sqrt((moved**2).mean()) / 0.02 < 0.05


def test_a_dimension_without_spread_is_switched_off():
    torch.manual_seed(0)
    data = torch.randn(300, 3)
    data[:, 1] = 0.1
    adapter = MoEAdapter(3, 4, 2)
    adapter.fit_normalization(data)
    elsewhere = data.clone()
    elsewhere[:, 1] += 1e-4
    torch.testing.assert_close(adapter(elsewhere), adapter(data), atol=1e-5, rtol=0)


def test_conversion_to_bfloat16_keeps_the_normalisation_exact():
    """A mean rounded to bfloat16, divided by a small spread, would be many standard deviations off."""
    torch.manual_seed(0)
    data = 1.2345 + 1e-3 * torch.randn(300, 6)
    adapter = MoEAdapter(6, 8, 2)
    adapter.fit_normalization(data)
    exact = adapter(data).detach()
    rough = adapter.to(torch.bfloat16)(data).detach().float()
    assert adapter.expert_weight.dtype == torch.bfloat16 and adapter.mean.dtype == torch.float32
    assert float((rough - exact).abs().max()) < 0.05 * float(exact.abs().max())


def test_an_adapter_that_is_not_finite_is_neither_saved_nor_loaded(tmp_path):
    adapter = XRecAdapter(AdapterSpec(6, 10, 4))
    adapter.save_pretrained(tmp_path)
    with torch.no_grad():
        adapter.item.gate[0, 0] = float("inf")
    with pytest.raises(ValueError, match="1 of 24 values of 'item.gate' are not finite.*tune again"):
        adapter.save_pretrained(tmp_path / "other")
    state = load_file(tmp_path / "adapter.safetensors")
    state["user.expert_shift"][1] = float("nan")
    save_file(state, tmp_path / "adapter.safetensors")
    with pytest.raises(ValueError, match="adapter.safetensors: 6 of 24 values of 'user.expert_shift'"):
        XRecAdapter.from_pretrained(tmp_path)


def test_adapters_of_earlier_versions_have_an_output_scale_of_one(tmp_path):
    torch.manual_seed(0)
    adapter = XRecAdapter(AdapterSpec(6, 10, 4))
    adapter.save_pretrained(tmp_path)
    state = load_file(tmp_path / "adapter.safetensors")
    save_file({n: v for n, v in state.items() if "output_scale" not in n}, tmp_path / "adapter.safetensors")
    vectors = torch.randn(5, 6)
    assert torch.equal(XRecAdapter.from_pretrained(tmp_path).user(vectors), adapter.user(vectors))
