"""A workspace small enough to tune in a second: random embeddings, made-up texts, a tiny random LLaMA."""

import tempfile

import numpy as np
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from tests.random_models import train_tokenizer
from xrec import tables
from xrec.config import TuneConfig
from xrec.embeddings import Embeddings
from xrec.explainer.adapter import AdapterSpec, XRecAdapter
from xrec.workspace import Workspace

WORDS = ["warm", "bread", "fresh", "coffee", "quiet", "garden", "spicy", "noodles", "old", "jazz", "bright", "tea"]
USERS, ITEMS, DIM = 14, 10, 8
HOSTILE = "<img src=x onerror=window.hacked=1>"
_PROVENANCE = {"model": "test", "prompt_hash": "test", "tokens_in": 0, "tokens_out": 0, "status": "ok", "error": None}


def sentence(generator: np.random.Generator, low: int = 3, high: int = 12) -> str:
    return " ".join(generator.choice(WORDS, generator.integers(low, high)))


def make_workspace(
    folder,
    rows: int = 60,
    zero_shot_users: int = 2,
    tied: bool = False,
    zero_shot_items: int = 0,
    hostile: bool = False,
    endless: bool = False,
) -> Workspace:
    """Stages preprocess, embed and backbone, finished; `rows` explained pairs, of which about 1 in 6 is validation.

    The explained pairs are interactions of their split; zero-shot nodes have further ones to be folded in from. With
    `hostile`, item 3's title and user 1's profile would run in a page that takes them for HTML; with `endless`, the
    model ends no text by itself.
    """
    workspace, generator = Workspace(folder), np.random.default_rng(0)
    stage = workspace.stage("preprocess", {})
    users = [{"user": u, "user_id": f"u{u}", "zero_shot": u >= USERS - zero_shot_users} for u in range(USERS)]
    items = [
        {"item": i, "item_id": f"i{i}", "title": f"place {i}", "zero_shot": i >= ITEMS - zero_shot_items}
        for i in range(ITEMS)
    ]
    if hostile:
        items[3]["title"] = HOSTILE
    trained_users, trained_items = USERS - zero_shot_users, ITEMS - zero_shot_items
    known = [(u, i) for u in range(trained_users) for i in range(trained_items)]
    pairs = [known[k] for k in generator.permutation(len(known))[:rows]]
    split = ["val" if k % 6 == 0 else "test" if k % 6 == 1 else "train" for k in range(rows)]
    explanations = [
        {"user": u, "item": i, "split": s, "explanation": sentence(generator), "feature": None, **_PROVENANCE}
        for (u, i), s in zip(pairs, split, strict=True)
    ]
    stage.write_table("users", tables.from_rows("users", users))
    stage.write_table("items_index", tables.from_rows("items_index", items))
    fold_in = [(u, (3 * u + k) % trained_items) for u in range(trained_users, USERS) for k in range(3)]
    fold_in += [((2 * i + k) % trained_users, i) for i in range(trained_items, ITEMS) for k in range(4)]
    interactions = [*zip(pairs, split, strict=True), *((pair, "fold_in") for pair in fold_in)]
    stage.write_table(
        "interactions",
        tables.from_rows("interactions", [{"user": u, "item": i, "split": s} for (u, i), s in interactions]),
    )
    stage.write_table("explanations", tables.from_rows("explanations", explanations))
    for side, count in (("user", USERS), ("item", ITEMS)):
        profiles = [{side: k, "profile": sentence(generator), **_PROVENANCE} for k in range(count)]
        if hostile and side == "user":
            profiles[1]["profile"] = HOSTILE
        stage.write_table(f"{side}_profiles", tables.from_rows(f"{side}_profiles", profiles))
    stage.finish({})
    torch.manual_seed(0)
    stage = workspace.stage("embed", {})
    Embeddings(torch.randn(3, USERS, DIM), torch.randn(3, ITEMS, DIM)).save(
        f"{workspace.root}/embed/embeddings.safetensors"
    )
    stage.finish({})
    stage = workspace.stage("backbone", {})
    save_backbone(f"{workspace.root}/backbone/model", tied, endless)
    stage.finish({})
    return workspace


def finish_tune(workspace: Workspace, seed: int = 0, force: bool = False, **changes) -> None:
    """The stage tune, finished with random weights instead of trained ones; `changes` to the adapter's settings."""
    torch.manual_seed(seed)
    config = {"backbone": changes.pop("backbone", None)}
    stage = workspace.stage("tune", config, inputs=["preprocess", "embed", "backbone"], force=force)
    spec = AdapterSpec(**({"embedding_dim": DIM, "hidden_size": 32, "experts": 2} | changes))
    with tempfile.TemporaryDirectory() as folder:
        XRecAdapter(spec).save_pretrained(folder)
        stage.upload(folder, "adapter")
    stage.finish({})


def save_backbone(folder: str, tied: bool = False, endless: bool = False) -> None:
    """A tokenizer trained on the words and a LLaMA with grouped-query attention and random weights."""
    tokenizer = train_tokenizer(
        [" ".join(WORDS), "explain why the user would enjoy the item place profile record"], 300
    )
    torch.manual_seed(1)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        tie_word_embeddings=tied,
        initializer_range=0.2,
    )
    model = LlamaForCausalLM(config)
    if endless:
        # Some of the other logits are positive.
        model.lm_head.weight.data[tokenizer.all_special_ids] = 0
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def tune_config(**changes) -> TuneConfig:
    """Settings under which every part of tuning takes part: noise, dropout, warm-up, validation, uneven steps."""
    settings = {
        "adapter": {"experts": 3, "dropout": 0.2},
        "prompt": {"max_profile_tokens": 40, "max_tokens": 150},
        "epochs": 4,
        "warmup_epochs": 1,
        "batch_size": 7,
        "learning_rate": 1e-2,
        "validate_every": 5,
        "max_length": 192,
        "seed": 5,
    }
    return TuneConfig.model_validate(settings | changes)
