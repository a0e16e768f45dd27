"""A training state survives its file unchanged; other bytes are refused."""

import pytest
import torch
from safetensors.torch import save

from xrec.graph.state import TrainingState


def test_round_trip():
    state = TrainingState(
        epoch=4,
        stale=1,
        best_recall=0.1 + 0.2,
        best_epoch=2,
        history=[{"epoch": 0, "loss": 1 / 3}],
        tensors={"embedding": torch.randn(5, 3), "best": torch.randn(5, 3), "step": torch.tensor(7.0)},
    )
    loaded = TrainingState.from_bytes(state.to_bytes())
    assert {k: v for k, v in vars(loaded).items() if k != "tensors"} == {
        k: v for k, v in vars(state).items() if k != "tensors"
    }
    assert set(loaded.tensors) == set(state.tensors)
    assert all(torch.equal(loaded.tensors[name], tensor) for name, tensor in state.tensors.items())


@pytest.mark.parametrize("data", [b"", b"not safetensors", save({"embedding": torch.zeros(2)})])
def test_refuses_other_bytes(data):
    with pytest.raises(ValueError, match="not a LightGCN training state"):
        TrainingState.from_bytes(data)
