"""The workspace that `benchmarks.cluster` explains: a sample world, random embeddings and adapter, and its requests.

Its backbone is a tokenizer trained on the world's own texts, and a config: the simulated engine reads no weights.
"""

import tempfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from transformers import LlamaConfig

from ray_jobs import preprocess, sample
from tests.random_models import train_tokenizer
from xrec.config import PreprocessConfig, SampleConfig
from xrec.embeddings import Embeddings
from xrec.explainer.adapter import AdapterSpec, XRecAdapter
from xrec.explainer.pairs import PairTexts
from xrec.workspace import Workspace

_DIM = 64
_VOCABULARY = 2048


def sample_world(folder: Path, users: int, items: int, hidden: int) -> Workspace:
    """A workspace as `xrec tune` leaves it, with random weights.

    Args:
        folder: a new one.
        users, items: of the sample world; the preprocessed one has a few less.
        hidden: the backbone's hidden size, which is the width of an adapted vector.
    """
    workspace = Workspace(folder)
    sample.run(workspace, SampleConfig(users=users, items=items))
    preprocess.run(workspace, PreprocessConfig())
    texts = PairTexts.load(workspace)
    torch.manual_seed(0)
    stage = workspace.stage("embed", {}, inputs=["preprocess"])
    with tempfile.TemporaryDirectory(prefix="xrec-") as scratch:
        known = [len(workspace.read_table("preprocess", name)) for name in ("users", "items_index")]
        user, item = (torch.randn(3, count, _DIM) for count in known)
        Embeddings(user, item).save(f"{scratch}/embeddings")
        stage.upload(f"{scratch}/embeddings", "embeddings.safetensors")
    stage.finish({})
    stage = workspace.stage("backbone", {})
    with tempfile.TemporaryDirectory(prefix="xrec-") as scratch:
        corpus = [*texts.titles, *texts.user_profiles.values(), *texts.item_profiles.values()]
        tokenizer = train_tokenizer(corpus, _VOCABULARY)
        tokenizer.save_pretrained(scratch)
        config = LlamaConfig(vocab_size=len(tokenizer), hidden_size=hidden, architectures=["LlamaForCausalLM"])
        config.save_pretrained(scratch)
        stage.upload(scratch, "model")
    stage.finish({})
    stage = workspace.stage("tune", {"backbone": None}, inputs=["preprocess", "embed", "backbone"])
    with tempfile.TemporaryDirectory(prefix="xrec-") as scratch:
        XRecAdapter(AdapterSpec(embedding_dim=_DIM, hidden_size=hidden)).save_pretrained(scratch)
        stage.upload(scratch, "adapter")
    stage.finish({})
    return workspace


def write_pairs(workspace: Workspace, rows: int, file: Path) -> None:
    """Write `rows` distinct pairs of the workspace's users and items, drawn at random, as a request file."""
    users, items = (len(workspace.read_table("preprocess", name)) for name in ("users", "items_index"))
    if rows > users * items:
        raise SystemExit(
            f"{users:,} users and {items:,} items have fewer than {rows:,} pairs; raise --users or --items"
        )
    chosen = np.random.default_rng(0).choice(users * items, rows, replace=False)
    pq.write_table(pa.table({"user": chosen // items, "item": chosen % items}), file)
