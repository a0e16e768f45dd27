"""Devices and threads of stages without workers."""

import pytest
import torch

from ray_jobs.devices import chosen_device, limited_threads


def test_auto_is_the_gpu_where_there_is_one(monkeypatch):
    for there, expected in ((True, "cuda"), (False, "cpu")):
        monkeypatch.setattr(torch.cuda, "is_available", lambda there=there: there)
        assert chosen_device("auto", "embed.compute.device") == expected


def test_a_gpu_that_is_not_there_is_refused_by_the_settings_name(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match=r"evaluate\.compute\.device = 'cuda:1', but PyTorch sees no GPU"):
        chosen_device("cuda:1", "evaluate.compute.device")


def test_threads_are_those_of_the_block_alone():
    before = torch.get_num_threads()
    with pytest.raises(KeyError), limited_threads(before + 1):
        assert torch.get_num_threads() == before + 1
        raise KeyError
    with limited_threads(None):
        assert torch.get_num_threads() == before
    assert torch.get_num_threads() == before
