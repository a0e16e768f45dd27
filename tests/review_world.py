"""Workspaces with hostile corners for the tests of records, and what the records must be, by plain loops."""

import hashlib
import json
import random

import pyarrow as pa

from xrec import tables
from xrec.config import PreprocessConfig
from xrec.data.preprocess import OPTIONAL_TABLES, REQUIRED_TABLES, preprocess
from xrec.workspace import Workspace

PROVENANCE = {"model": "m", "prompt_hash": "", "tokens_in": 0, "tokens_out": 0, "error": None}


def raw_tables(seed: int = 0, users: int = 40, items: int = 90, rows: int = 400) -> dict[str, pa.Table]:
    """Reviews with repeated pairs, equal times, empty and absent texts, and odd ids; items of which little is known."""
    draw = random.Random(seed)
    reviews = []
    for n in range(rows):
        plain = f"  token{n} was fine, und schön «{n}».\n" * draw.randint(1, 3)
        odd = f'\u2003token{n} 👩‍🍳\x00"<b>寿司</b>\\ ' * draw.randint(1, 6)
        text = draw.choice([None, "", " \n\u00a0", *[plain, odd] * 5])
        time = draw.choice([None, 1, 2, 3])
        user, item = f"u {draw.randrange(users)}'", f'i"{draw.randrange(items)}'
        reviews.append({"user_id": user, "item_id": item, "rating": draw.choice([None, 1.0, 4.1, 5.0])})
        reviews[-1] |= {"timestamp": time, "text": text}
    listed = [
        {
            "item_id": f'i"{n}',
            "title": draw.choice([f"Place {n}", f'item i"{n}', ""]),
            "attributes": draw.choice(
                [None, "", "{}", "null", '{"city": "X", "open": true}', '["a", "b"]', "not {json"]
            ),
            "description": draw.choice([None, "", "  ", "A warm, old place with a long story to tell. " * 3]),
        }
        for n in range(0, items, 2)
    ]
    return {"reviews": tables.from_rows("reviews", reviews), "items": tables.from_rows("items", listed)}


def make_workspace(
    where: Workspace, source: dict[str, pa.Table], config: PreprocessConfig, parts: int = 1
) -> Workspace:
    """Stages `data` and `preprocess`; `reviews` and `items` in so many files each."""
    stage = where.stage("data", {})
    for name, table in source.items():
        if parts == 1 or name not in REQUIRED_TABLES:
            stage.write_table(name, table)
        else:
            size = -(-table.num_rows // parts)
            for part in range(parts):
                where.write_table(table.slice(part * size, size), "data", name)
                data = where.read_bytes("data", f"{name}.parquet")
                where.remove("data", f"{name}.parquet")
                where.write_bytes(data, "data", name, f"part-{part:06d}.parquet")
    stage.finish({})
    stage = where.stage("preprocess", config.identity(), inputs=["data"])
    wanted = [name for name in (*REQUIRED_TABLES, *OPTIONAL_TABLES) if name in source]
    found, _ = preprocess({name: where.read_table("data", name) for name in wanted}, config)
    for name, table in found.items():
        stage.write_table(name, table)
    stage.finish({})
    return where


def write_profiles(workspace: Workspace, profiles: dict[int, str | None]) -> None:
    """Item profiles as the stage leaves them; None: it failed."""
    rows = [
        {"item": item, "profile": text or "", "status": "ok" if text else "failed", **PROVENANCE}
        for item, text in profiles.items()
    ]
    data = tables.from_rows("item_profiles", rows)
    workspace.write_table(data, "profile", "item_profiles")


def place(group: str, seed: int, user: int, item: int) -> tuple[int, int, int]:
    """What draws order pairs by."""
    digest = hashlib.md5(f"{group}|{seed}|{user}|{item}".encode()).digest()
    return int.from_bytes(digest[8:], "little"), user, item


class Loops:
    """The records of a workspace, computed row by row."""

    def __init__(self, workspace: Workspace, config, min_rating: float | None = None):
        self.config = config

        def read(stage, name):
            return workspace.read_table(stage, name).to_pylist()

        self.users, self.index = read("preprocess", "users"), read("preprocess", "items_index")
        self.facts = {row["item_id"]: row for row in read("data", "items")}
        user = {row["user_id"]: row["user"] for row in self.users}
        item = {row["item_id"]: row["item"] for row in self.index}
        explained = {}
        if workspace.has_table("preprocess", "explanations"):
            explained = {(r["user"], r["item"]): r for r in read("preprocess", "explanations")}
        self.split, self.feature = {}, {}
        for row in read("preprocess", "interactions"):
            pair = row["user"], row["item"]
            own = explained.get(pair, {}).get("split")
            self.split[pair] = own if own in ("val", "test") else row["split"]
            self.feature[pair] = explained.get(pair, {}).get("feature")
        latest: dict = {}
        for row in read("data", "reviews"):
            pair = user.get(row["user_id"]), item.get(row["item_id"])
            if pair not in self.split or (min_rating is not None and (row["rating"] or 9) < min_rating):
                continue
            text = row["text"] or ""
            tie = int.from_bytes(hashlib.md5(text.encode()).digest()[8:], "little")
            age = row["timestamp"] if row["timestamp"] is not None else -(2**63)
            if pair not in latest or (age, tie >> 1) > latest[pair][0]:
                latest[pair] = (age, tie >> 1), text
        self.review = {pair: text for pair, (_, text) in latest.items() if text.strip()}

    def cut(self, text: str) -> str:
        """At most `review_characters`, to the end of a word if that is in the second half."""
        limit, text = self.config.review_characters, text.strip()
        if len(text) <= limit:
            return text
        for end in range(limit, limit // 2, -1):
            if text[end].isspace():
                return text[:end].rstrip()
        return text[:limit].rstrip()

    def item_profile(self) -> dict[int, dict]:
        found = {}
        for row in self.index:
            item, record = row["item"], {"title": row["title"]}
            known = self.facts.get(row["item_id"], {})
            if (known.get("attributes") or "").strip() not in ("", "{}", "null"):
                try:
                    record["attributes"] = json.loads(known["attributes"])
                except json.JSONDecodeError:
                    record["attributes"] = known["attributes"]
                if isinstance(record["attributes"], list):
                    record["attributes"] = known["attributes"]
            if (known.get("description") or "").strip():
                record["description"] = self.cut(known["description"])
            wanted = "fold_in" if row["zero_shot"] else "train"
            pairs = [p for p in self.review if p[1] == item and self.split[p] == wanted]
            pairs.sort(key=lambda p: place("item", self.config.seed, *p))
            if pairs[: self.config.reviews_per_item]:
                record["reviews"] = [self.cut(self.review[p]) for p in pairs[: self.config.reviews_per_item]]
            if len(record) > 1 or self.titled(row):
                found[item] = record
        return found

    def user_profile(self, profiles: dict[int, str | None]) -> dict[int, dict]:
        found = {}
        for row in self.users:
            wanted = "fold_in" if row["zero_shot"] else "train"
            pairs = [
                p
                for p, split in self.split.items()
                if p[0] == row["user"] and split == wanted
                if p in self.review or profiles.get(p[1]) or self.titled(self.index[p[1]])
            ]
            pairs.sort(key=lambda p: place("user", self.config.seed, *p))
            items = []
            for pair in pairs[: self.config.items_per_user]:
                entry = {"title": self.index[pair[1]]["title"]}
                if profiles.get(pair[1]):
                    entry["profile"] = profiles[pair[1]]
                if pair in self.review:
                    entry["review"] = self.cut(self.review[pair])
                items.append(entry)
            if items:
                found[row["user"]] = {"items": items}
        return found

    def explanation(self) -> dict[tuple[int, int], dict]:
        return {
            pair: {"review": self.cut(text)}
            for pair, text in sorted(self.review.items())
            if self.split[pair] in ("train", "val", "test")
        }

    @staticmethod
    def titled(row: dict) -> bool:
        return bool(row["title"].strip()) and row["title"] != f"item {row['item_id']}"
