"""Where PyTorch runs in the process of a stage that has no workers: on which device, with how many threads."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch


def chosen_device(name: str, setting: str) -> str:
    """The device that a setting asks for; `auto` is the GPU where there is one.

    Args:
        name: auto, cpu, cuda or cuda:N.
        setting: what the error calls it, such as `embed.compute.device`.

    Raises:
        ValueError: a GPU is asked for, and there is none.
    """
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise ValueError(f"{setting} = {name!r}, but PyTorch sees no GPU here; use auto or cpu")
    return name


@contextmanager
def limited_threads(count: int | None) -> Iterator[None]:
    """Let PyTorch use so many CPU threads inside the block; None leaves it as it is."""
    before = torch.get_num_threads()
    torch.set_num_threads(count or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)
