"""The six prompts of each kind that were published with the data, as records of ours."""

import ast
import json
from pathlib import Path

from xrec.config import TextKind


def records(folder: Path, kind: TextKind) -> list[str]:
    """The records of one kind.

    Args:
        folder: with `item_prompts.json`, `user_prompts.json` and `exp_prompts.json`, JSON lines.
    """
    name = {"item_profile": "item", "user_profile": "user", "explanation": "exp"}[kind]
    lines = (folder / f"{name}_prompts.json").read_text().splitlines()
    convert = {"item_profile": _item, "user_profile": _user, "explanation": _explanation}[kind]
    return [json.dumps(convert(json.loads(line)), ensure_ascii=False) for line in lines if line.strip()]


def _item(published: dict) -> dict:
    head, reviews = published["prompt"].removeprefix("BASIC INFORMATION: \n").split("\nUSER FEEDBACK: \n")
    attributes = ast.literal_eval(head)
    return {"title": attributes.pop("name"), "attributes": attributes, "reviews": ast.literal_eval(reviews.strip())}


def _user(published: dict) -> dict:
    bought = json.loads(published["prompt"])["PURCHASED BUSINESSES"]
    items = [{"title": b["title"], "profile": b["description"], "review": b["feedback"]} for b in bought]
    return {"items": items}


def _explanation(published: dict) -> dict:
    return {"review": published["feedback"]["review"]}
