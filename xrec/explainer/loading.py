"""What the stages `embed`, `backbone` and `tune` left in a workspace, as the explainer and tuning read it."""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from xrec.embeddings import Embeddings
from xrec.explainer.adapter import AdapterSpec, XRecAdapter
from xrec.explainer.model import backbone_hash
from xrec.explainer.prompt import PromptBuilder
from xrec.workspace import Workspace, WorkspaceError


def load_embeddings(workspace: Workspace) -> Embeddings:
    """The embeddings that the stage `embed` wrote."""
    with workspace.local("embed", "embeddings.safetensors") as path:
        return Embeddings.load(path)


def load_adapter(workspace: Workspace) -> tuple[XRecAdapter, str]:
    """The adapter that the stage `tune` wrote, and the SHA-256 of its weights.

    Raises:
        WorkspaceError: there is none.
    """
    with workspace.local("tune", "adapter") as folder:
        adapter = XRecAdapter.from_pretrained(folder)
        return adapter, hashlib.sha256((folder / "adapter.safetensors").read_bytes()).hexdigest()


@contextmanager
def backbone_folder(workspace: Workspace, name: str | None) -> Iterator[str]:
    """What to load the backbone from: its name, or a local copy of the workspace's own where the name is None."""
    if name is not None:
        yield name
    else:
        with workspace.local("backbone", "model") as path:
            yield str(path)


def check_backbone(spec: AdapterSpec, name: str | None, path: str, config: Any) -> None:
    """Check that a backbone is the one that an adapter was tuned for.

    Args:
        spec: the adapter's.
        name: the backbone's, None for the workspace's own.
        path: what it is loaded from.
        config: its Hugging Face config.

    Raises:
        WorkspaceError: it has another hash.
    """
    found = backbone_hash(path, config)
    if spec.backbone_hash not in ("", found):
        raise WorkspaceError(
            f"the adapter was tuned for the backbone {spec.backbone!r} with hash {spec.backbone_hash[:12]}…, but "
            f"{name or 'the workspace backbone'} has {found[:12]}…; tune it again with `xrec tune --force`, or restore "
            "that backbone"
        )


def prompts_of(spec: AdapterSpec, tokenizer: Any) -> PromptBuilder:
    """The template that an adapter was tuned with.

    Raises:
        WorkspaceError: this version of XRec has another one.
    """
    prompts = PromptBuilder.from_settings(tokenizer, spec.prompt)
    if spec.prompt_hash and prompts.hash != spec.prompt_hash:
        raise WorkspaceError(
            "the adapter was tuned with another prompt template; tune it again with `xrec tune --force`"
        )
    return prompts


def backbone_dtype(device: torch.device | str | None) -> torch.dtype:
    """What a backbone runs in: bfloat16 on a GPU, float32 on a CPU."""
    gpu = device is not None and torch.device(device).type == "cuda"
    return torch.bfloat16 if gpu else torch.float32
