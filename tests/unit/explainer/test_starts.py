"""An untrained adapter must not disturb the model that it is put before: random models with a real one's norms."""

import pytest

from benchmarks.starts import FAMILIES, MODES, random_model, sample_world, start_cost
from tests.random_models import train_tokenizer
from xrec.explainer.pairs import explained_pairs

PAIRS = 6


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    workspace = sample_world(str(tmp_path_factory.mktemp("starts")))
    texts = explained_pairs(workspace, "train")["explanation"].to_pylist()
    labels = [" user record: item record: item name: user profile: item profile: explanation:"]
    return workspace, train_tokenizer(texts + labels, 600)


@pytest.mark.parametrize("align", ["none", "explanations"])
@pytest.mark.parametrize("family", FAMILIES)
def test_what_a_model_writes_stays_as_probable(world, family, align):
    """Samples of the model itself lose at most 0.02 nats per token, in every injection mode that the model allows."""
    workspace, tokenizer = world
    costs = {}
    for mode in MODES:
        try:
            backbone = random_model(family, len(tokenizer))
            costs[mode], size = start_cost(workspace, backbone, tokenizer, mode, 0.1, align, PAIRS)
        except ValueError as error:
            assert mode == "output" and "use 'input'" in str(error)
            continue
        assert size == pytest.approx(0.1, rel=0.2)
    assert costs.keys() >= {"input", "none"}
    assert max(costs.values()) < 0.02, costs


def test_larger_vectors_do_disturb_it(world):
    """So that the test above can fail."""
    workspace, tokenizer = world
    cost, _ = start_cost(workspace, random_model("LLaMA", len(tokenizer)), tokenizer, "input", 3.7, "none", PAIRS)
    assert cost > 0.1
