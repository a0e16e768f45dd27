"""Workspaces whose training explanations name known users', items' and features' words, and tiny shapes."""

import numpy as np
import torch

from xrec import tables
from xrec.baselines.model import Ratings, Shape
from xrec.embeddings import Embeddings
from xrec.workspace import Workspace

FEATURES = ("fresh bread", "quiet garden", "old jazz")
_PROVENANCE = {"model": "test", "prompt_hash": "", "tokens_in": 0, "tokens_out": 0, "status": "ok", "error": None}


def tiny_shape(ratings: bool = True, **changes) -> Shape:
    sizes = {"users": 5, "items": 4, "known_users": 3, "known_items": 2, "vocabulary": 11, "hidden": 8, "layers": 2}
    sizes |= {"heads": 2, "dropout": 0.0, "ratings": Ratings(3.5, 1.0, 5.0) if ratings else None}
    return Shape(**{**sizes, **changes})


def make_workspace(folder, users: int = 12, items: int = 9, named: bool = True, ratings: bool = True) -> Workspace:
    """Stages data, preprocess and embed, finished; an item's explanations name its feature.

    Each split's texts have a word of their own (trainword, valword, testword).
    """
    workspace, generator = Workspace(folder), np.random.default_rng(3)
    pairs = [(u, i) for u in range(users) for i in range(items) if (u + 2 * i) % 3]
    split = ["val" if k % 7 == 3 else "test" if k % 7 == 5 else "train" for k in range(len(pairs))]
    rows = [
        {
            "user": u,
            "item": i,
            "split": s,
            "explanation": f"The user enjoys the {FEATURES[i % 3]} of the {s}word.",
            "feature": FEATURES[i % 3] if named else None,
            **_PROVENANCE,
        }
        for (u, i), s in zip(pairs, split, strict=True)
    ]
    stage = workspace.stage("data", {})
    reviews = [
        {"user_id": f"u{u}", "item_id": f"i{i}", "rating": float(1 + (u + i) % 5), "timestamp": t, "text": "fine"}
        for t, (u, i) in enumerate(pairs)
    ]
    stage.write_table("reviews", tables.from_rows("reviews", reviews if ratings else []))
    facts = [{"item_id": f"i{i}", "title": f"place {i}", "attributes": '{"city": "Rome"}'} for i in range(items)]
    stage.write_table("items", tables.from_rows("items", facts))
    stage.finish({})
    stage = workspace.stage("preprocess", {})
    nodes = {"users": ("user", users), "items_index": ("item", items)}
    for table, (side, count) in nodes.items():
        known = [{side: n, f"{side}_id": f"{side[0]}{n}", "zero_shot": False} for n in range(count)]
        if side == "item":
            known = [row | {"title": f"place {row['item']}"} for row in known]
        stage.write_table(table, tables.from_rows(table, known))
    stage.write_table("explanations", tables.from_rows("explanations", rows))
    edges = [{"user": u, "item": i, "split": s} for (u, i), s in zip(pairs, split, strict=True)]
    stage.write_table("interactions", tables.from_rows("interactions", edges))
    profiles = [
        {"item": i, "profile": f"Users who like {FEATURES[i % 3]} would enjoy place {i}.", **_PROVENANCE}
        for i in range(items)
    ]
    stage.write_table("item_profiles", tables.from_rows("item_profiles", profiles))
    stage.finish({})
    stage = workspace.stage("embed", {})
    drawn = [torch.from_numpy(generator.normal(size=(2, n, 4)).astype(np.float32)) for n in (users, items)]
    Embeddings(*drawn).save(f"{workspace.root}/embed/embeddings.safetensors")
    stage.finish({})
    return workspace
