"""A training state comes back as it was written, and anything else is refused with what to do."""

import pytest
import torch

from xrec.training_state import pack, unpack


def test_scalars_and_tensors_come_back():
    scalars = {"epoch": 3, "best": 0.25, "history": [{"loss": 1.5}]}
    tensors = {"weights": torch.arange(6.0).view(2, 3).T, "step": torch.tensor(7)}
    found, again = unpack(pack(scalars, tensors), "a state", "start anew")
    assert found == scalars
    assert again.keys() == tensors.keys()
    assert all(torch.equal(again[name], tensors[name]) for name in tensors)


@pytest.mark.parametrize("data", [b"", b"no safetensors", pack({}, {"a": torch.ones(9)})[:-5]])
def test_other_bytes_are_refused_by_name(data):
    with pytest.raises(ValueError, match=r"not a state \(.*\); start anew"):
        unpack(data, "a state", "start anew")
