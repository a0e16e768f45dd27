"""A workspace of raw reviews as `xrec sample` and `xrec preprocess` leave it, and settings to write its texts with."""

import json
from collections.abc import Iterable
from pathlib import Path

from ray_jobs import preprocess, sample
from xrec.config import PreprocessConfig, ProfileConfig, SampleConfig
from xrec.workspace import Workspace

MODEL = "test-model"


def make_raw_workspace(folder: Path, users: int = 30, items: int = 30, interactions: int = 6) -> Workspace:
    """Stages data and preprocess, finished: a few hundred reviews."""
    workspace = Workspace(folder)
    sample.run(workspace, SampleConfig(users=users, items=items, interactions_per_user=interactions))
    preprocess.run(workspace, PreprocessConfig(zero_shot_users=0.1, zero_shot_items=0.1))
    return workspace


def profile_config(url: str, compute: dict | None = None, **changes) -> ProfileConfig:
    """An endpoint's settings, small enough for a test machine."""
    width = {"base_url": url, "actors": (1, 1), "concurrency": 16, "rows_per_block": 16}
    return ProfileConfig.model_validate(
        {"backend": "openai", "model": MODEL, "compute": width | (compute or {})} | changes
    )


def as_overrides(config: ProfileConfig) -> list[str]:
    """The same settings for a command line."""
    return [f"profile.{name}={json.dumps(value)}" for name, value in config.model_dump(mode="json").items()]


def expected_keys(workspace: Workspace) -> dict[str, list]:
    """The keys that each table has to hold, from the interactions alone (every review of this world has a text)."""
    pairs = workspace.read_table("preprocess", "interactions").to_pylist()
    zero_shot = {
        side: {row[side] for row in workspace.read_table("preprocess", table).to_pylist() if row["zero_shot"]}
        for side, table in (("user", "users"), ("item", "items_index"))
    }
    own = {"train": lambda user: user not in zero_shot["user"], "fold_in": lambda user: user in zero_shot["user"]}
    return {
        "item_profiles": sorted({row["item"] for row in workspace.read_table("preprocess", "items_index").to_pylist()}),
        "user_profiles": sorted({p["user"] for p in pairs if p["split"] in own and own[p["split"]](p["user"])}),
        "explanations": sorted((p["user"], p["item"]) for p in pairs if p["split"] != "fold_in"),
    }


def keys(rows: Iterable[dict], table: str) -> list:
    """The keys of a table's rows, sorted, doubles and all."""
    if table == "explanations":
        return sorted((row["user"], row["item"]) for row in rows)
    return sorted(row[table.removesuffix("_profiles")] for row in rows)
