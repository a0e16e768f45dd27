"""Greedy generation against the plainest way to do it, and its limits."""

import numpy as np
import pytest
import torch

from tests.unit.baselines.worlds import make_workspace
from xrec.baselines import generation
from xrec.baselines.preparation import prepare
from xrec.baselines.systems import load_system, new_system, save_system
from xrec.baselines.training import Trainer
from xrec.config.baseline import BaselineConfig

MODELS = ["att2seq", "nrt", "peter", "peter_plus", "pepler"]
SMALL = {"hidden": 16, "heads": 2, "layers": 1, "vocabulary": 300, "batch_size": 8, "epochs": 3, "prompt_epochs": 1}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    workspace, found = make_workspace(tmp_path_factory.mktemp("baselines") / "w"), {}
    for name in MODELS:
        config = BaselineConfig(name=name, learning_rate=1e-2, **SMALL)
        prepared = prepare(workspace, config)
        Trainer(prepared.model, prepared.phases, prepared.tokenizer, 8, 3, 0).run(lambda *_: None, lambda _: None)
        found[name] = prepared
    return found


@torch.no_grad()
def greedy(model, rows, number: int, tokenizer, tokens: int) -> list[int]:
    """A row alone, read anew for every token."""
    written: list[int] = []
    while len(written) < tokens and (not written or written[-1] != tokenizer.eos_token_id):
        batch = rows.batch(np.array([number]), tokenizer)
        logits, state = model.begin(batch)
        for token in written:
            logits, state = model.advance(torch.tensor([token]), state)
        written.append(int(logits[0].argmax()))
    return written


@pytest.mark.parametrize("name", MODELS)
def test_a_batch_writes_what_each_row_alone_would(trained, name):
    prepared = trained[name]
    rows = prepared.phases[-1].validation
    results = [r for batch in generation.generate(prepared.model, rows, prepared.tokenizer, 12, 5) for r in batch]
    assert len(results) == len(rows)
    for number in (0, len(rows) - 1):
        written = results[number].token_ids
        expected = greedy(prepared.model, rows, number, prepared.tokenizer, min(12, len(written)))
        assert written[:12] == expected
        text = prepared.tokenizer.decode(written, skip_special_tokens=True).strip()
        assert text.startswith(results[number].text)


def test_texts_keep_to_the_words(trained):
    prepared = trained["peter"]
    rows = prepared.phases[-1].validation
    (results,) = generation.generate(prepared.model, rows, prepared.tokenizer, 3, 1000)
    assert all(len(result.text.split()) <= 3 for result in results)
    assert {result.finish_reason for result in results} <= {"length", "sentence", "stop"}


@pytest.mark.parametrize("name", MODELS)
def test_a_saved_system_writes_the_same(trained, name, tmp_path):
    prepared = trained[name]
    save_system(tmp_path, name, prepared.model, prepared.shape, prepared.tokenizer)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["config.json", "model.safetensors", "tokenizer.json"]
    model, tokenizer = load_system(tmp_path)
    rows = prepared.phases[-1].validation
    before, after = (
        [r.text for batch in generation.generate(m, rows, t, 50) for r in batch]
        for m, t in ((prepared.model, prepared.tokenizer), (model, tokenizer))
    )
    assert before == after
    assert all(torch.equal(value, model.state_dict()[key]) for key, value in prepared.model.state_dict().items())


def test_a_floor_is_not_trained(trained):
    with pytest.raises(ValueError, match="'item_profile' is no system that is trained"):
        new_system("item_profile", trained["peter"].shape, trained["peter"].tokenizer)
