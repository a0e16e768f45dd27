"""Injection against a literal implementation of Eq. 12, on every decoder family."""

import copy

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    CodeGenConfig,
    GPTJConfig,
    GPTNeoConfig,
    NemotronConfig,
    StableLmConfig,
)

from tests.unit.explainer.decoders import FAMILIES, make_decoder, reference_logits
from xrec.explainer.injection import KEYWORD, attach, attention_modules, vectors_at
from xrec.explainer.model import InjectedBackbone


def run(model, ids, user, item, vectors, mode="input", replace=True):
    masks = torch.zeros(2, 1, len(ids), dtype=torch.bool)
    masks[0, 0, user], masks[1, 0, item] = True, True
    injected = InjectedBackbone(copy.deepcopy(model), mode, replace)
    ids = torch.tensor([ids])
    with torch.no_grad():
        return injected(
            ids, torch.ones_like(ids), masks[0], masks[1], vectors[:1], vectors[1:], use_cache=False
        ).logits[0]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("replace", [True, False])
def test_input_injection_equals_the_equation(family, replace):
    model, ids = make_decoder(family), [0, 17, 3, 25, 3, 40, 41, 42]
    vectors = torch.randn(2, 32)
    expected = reference_logits(copy.deepcopy(model), ids, [2, 4], vectors, replace)
    found = run(model, ids, 2, 4, vectors, replace=replace)
    torch.testing.assert_close(found, expected, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
def test_vectors_matter_in_every_layer(family):
    model, ids = make_decoder(family), [0, 17, 3, 25, 3, 40]
    one, two = (run(model, ids, 2, 4, v, replace=False) for v in (torch.randn(2, 32), torch.randn(2, 32)))
    assert (one[-1] - two[-1]).abs().max() > 1e-3
    torch.testing.assert_close(one[:2], two[:2], atol=0, rtol=0)  # tokens before the first position can't see it
    assert len(attention_modules(model)) == 3


def test_output_injection_adds_the_vector_after_the_projections():
    model, ids, vectors = make_decoder("llama-multi-head"), [0, 5, 3, 6, 3, 7], torch.randn(2, 32)
    found = run(model, ids, 2, 4, vectors, mode="output", replace=False)
    addend = torch.zeros(1, 6, 32)
    addend[0, 2], addend[0, 4] = vectors
    for layer in model.model.layers:
        for name in ("q_proj", "k_proj", "v_proj"):
            getattr(layer.self_attn, name).register_forward_hook(lambda module, args, output: output + addend)
    with torch.no_grad():
        expected = model(torch.tensor([ids]), use_cache=False).logits[0]
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def test_no_injection_leaves_only_the_replacement():
    model, ids, vectors = make_decoder("llama-grouped-query"), [0, 5, 3, 6, 3, 7], torch.randn(2, 32)
    embeddings = model.get_input_embeddings()(torch.tensor([ids])).detach().clone()
    embeddings[0, 2], embeddings[0, 4] = vectors
    with torch.no_grad():
        expected = model(inputs_embeds=embeddings, use_cache=False).logits[0]
    torch.testing.assert_close(run(model, ids, 2, 4, vectors, mode="none"), expected, atol=1e-5, rtol=1e-5)
    plain = run(model, ids, 2, 4, vectors, mode="none", replace=False)
    with torch.no_grad():
        torch.testing.assert_close(plain, model(torch.tensor([ids]), use_cache=False).logits[0], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("family", "word"), [("llama-grouped-query", "16 wide"), ("phi3-fused", "fuses")])
def test_output_injection_refuses_widths_that_do_not_fit(family, word):
    with pytest.raises(ValueError, match=word):
        attach(make_decoder(family), "output")


def test_a_model_without_projections_is_refused():
    with pytest.raises(ValueError, match="q_proj"):
        attach(torch.nn.Linear(2, 2), "input")


@pytest.mark.parametrize("mode", ["input", "output"])
def test_gradients_survive_checkpointing(mode):
    gradients = []
    for checkpointing in (False, True):
        model = make_decoder("llama-multi-head")
        injected = InjectedBackbone(model, mode)
        if checkpointing:
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        model.train()
        vectors = torch.linspace(-1, 1, 64).view(2, 32).requires_grad_()
        ids = torch.tensor([[0, 5, 3, 6, 3, 7]])
        mask = torch.zeros(2, 1, 6, dtype=torch.bool)
        mask[0, 0, 2], mask[1, 0, 4] = True, True
        logits = injected(ids, torch.ones_like(ids), mask[0], mask[1], vectors[:1], vectors[1:], use_cache=False).logits
        logits[0, -1].square().sum().backward()
        gradients.append(vectors.grad)
        assert all(p.grad is None for p in model.parameters())
    assert gradients[0].abs().max() > 0
    torch.testing.assert_close(gradients[0], gradients[1], atol=1e-5, rtol=1e-5)


def test_vectors_at_places_each_side():
    user_mask = torch.tensor([[False, True, False], [False, False, False]])
    item_mask = torch.tensor([[False, False, True], [True, False, False]])
    user, item = torch.full((2, 2), 1.0), torch.full((2, 2), 2.0)
    expected = torch.tensor([[0.0, 1.0, 2.0], [2.0, 0.0, 0.0]]).unsqueeze(-1).expand(2, 3, 2)
    assert torch.equal(vectors_at(user_mask, item_mask, user, item), expected)


ENDS = {"bos_token_id": 0, "eos_token_id": 1}
DROPPING = {
    "vocab_size": 300,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    **ENDS,
}
UNREACHED = {
    "stablelm": lambda: StableLmConfig(**DROPPING, num_key_value_heads=4),
    "nemotron": lambda: NemotronConfig(**DROPPING, num_key_value_heads=4),
    "gptj": lambda: GPTJConfig(vocab_size=300, n_embd=32, n_layer=2, n_head=4, rotary_dim=4, **ENDS),
    "gpt-neo": lambda: GPTNeoConfig(
        vocab_size=300, hidden_size=32, num_layers=2, num_heads=4, attention_types=[[["global"], 2]], **ENDS
    ),
    "codegen": lambda: CodeGenConfig(vocab_size=300, n_embd=32, n_layer=2, n_head=4, rotary_dim=4, **ENDS),
}


@pytest.mark.parametrize("family", UNREACHED)
def test_backbones_that_would_ignore_the_vectors_are_rejected(family):
    model = AutoModelForCausalLM.from_config(UNREACHED[family]()).eval()
    with pytest.raises(ValueError, match=r"reach 0 of its 2 attention layers.*tune.injection to none"):
        InjectedBackbone(model, "input")
    InjectedBackbone(AutoModelForCausalLM.from_config(UNREACHED[family]()).eval(), "none")


def test_a_backbone_of_which_one_layer_ignores_the_vectors_is_rejected():
    model = make_decoder("llama-multi-head")
    layer = model.model.layers[1]
    forward = layer.forward
    layer.forward = lambda *args, **kwargs: forward(*args, **{k: v for k, v in kwargs.items() if k != KEYWORD})
    with pytest.raises(ValueError, match="reach 2 of its 3 attention layers"):
        InjectedBackbone(model, "input")
