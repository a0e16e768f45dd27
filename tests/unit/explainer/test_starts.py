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
def test_what_a_model_writes_stays_about_as_probable(world, family, align):
    """A model's own samples lose by any change: vectors of a tenth of the embeddings cost them a small part of what
    those of 3.7 times the embeddings do, which is what weights of ordinary size write without an output scale.
    """
    workspace, tokenizer = world
    for mode in MODES:
        try:
            (small, size), (large, _) = (
                start_cost(workspace, random_model(family, len(tokenizer)), tokenizer, mode, scale, align, PAIRS)
                for scale in (0.1, 3.7)
            )
        except ValueError as error:
            assert mode == "output" and "use 'input'" in str(error)
            continue
        assert size == pytest.approx(0.1, rel=0.2)
        assert small < 0.25
        if mode == "input":
            assert small < large / 4, (small, large)
