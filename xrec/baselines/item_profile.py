"""A floor: what is known of the item, put as an explanation, without a look at the user.

A system that explains for a user in particular should do better. The texts used are the item's profile, else its name
with its attributes and description, else its first training explanation, else its name alone; each row says which.
"""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

SOURCES = ("profile", "facts", "explanation", "title")
_PEOPLE = r"(?:users|people|those|readers|diners|customers|visitors|individuals|anyone|fans)"
# `Users who look for X would enjoy Y.`
_WHO = re.compile(rf"{_PEOPLE} (?:who|that|looking for) (?P<what>.+?),? would (?P<verb>[a-z]+) (?P<thing>.+)", re.I)
# `Fans of X and readers of Y would enjoy Z.`
_OTHERS = re.compile(r"(?P<who>.+?),? would (?P<verb>enjoy|appreciate|love|like) (?P<thing>.+)", re.I)
_PLACEHOLDER = re.compile(r"item \S+")


@dataclass
class ItemFacts:
    """What the source says of the items.

    Attributes:
        titles: one an item.
        profiles: of items that have one.
        details: attributes and description in words, of items that have some.
        explanations: each item's first training explanation, in the order of the users.
    """

    titles: Sequence[str]
    profiles: dict[int, str] = field(default_factory=dict)
    details: dict[int, str] = field(default_factory=dict)
    explanations: dict[int, str] = field(default_factory=dict)


def explain_item(item: int, facts: ItemFacts) -> tuple[str, str]:
    """An explanation, of any length, and which of `SOURCES` it is made from."""
    title = facts.titles[item]
    if facts.profiles.get(item):
        return rephrased(facts.profiles[item]), "profile"
    if facts.details.get(item):
        return f"The user would enjoy {title}: {facts.details[item]}", "facts"
    if facts.explanations.get(item):
        return facts.explanations[item], "explanation"
    return f"The user would enjoy {'this item' if _PLACEHOLDER.fullmatch(title) else title}.", "title"


def rephrased(profile: str) -> str:
    """An item's profile, which says who would enjoy it, turned to one user.

    `Users who look for X would enjoy Y.` becomes `The user would enjoy Y because they look for X.`; another subject is
    said of the user; a text that does not say who would enjoy the item follows an opening of its own.
    """
    first, *more = re.split(r"(?<=[.!?])\s+", " ".join(profile.split()))
    rest = " ".join(["", *more])
    match = _WHO.match(first)
    if match:
        thing = match["thing"].rstrip(".!")
        reason = match["what"] if " looking for " not in match[0][:40].lower() else f"look for {match['what']}"
        return f"The user would {match['verb'].lower()} {thing} because they {reason}.{rest}"
    match = _OTHERS.match(first)
    if match:
        thing, who = match["thing"].rstrip(".!"), match["who"]
        return f"The user would {match['verb'].lower()} {thing}, as would {who[0].lower()}{who[1:]}.{rest}"
    return f"The user would enjoy this item. {first}{rest}"


def details(attributes: str | None, description: str | None) -> str:
    """A description and attributes (JSON, or any text) in words; the empty text where there are none."""
    parts = [" ".join(description.split())] if description else []
    values = _values(attributes)
    return " ".join(parts + ([f"It is listed with {', '.join(values)}."] if values else []))


def _values(attributes: str | None) -> list[str]:
    if not attributes:
        return []
    try:
        found: Any = json.loads(attributes)
    except ValueError:
        return [" ".join(attributes.split())]
    if not isinstance(found, dict):
        return [str(found)]
    return [f"{name} {value}" for name, value in found.items() if isinstance(value, str | int | float)]
