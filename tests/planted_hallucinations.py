"""Statements of known truth about pairs whose sources are known: true ones, and ones that contradict or invent.

True statements name a thing that the pair's sources say somebody likes: in the sources' words, or with a word of it
replaced by one of the same meaning. Planted ones deny such a thing, turn its quality into the opposite, take a thing
from a stranger's sources, or add a number or a name.

The lists of words here are their own, but overlap with the offline checker's, which was extended with first rates in
view. Words that are in both flatter it, and the benchmark reports the others apart.
"""

import asyncio
import random
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ray_jobs import preprocess, sample
from xrec import tables
from xrec.config import PreprocessConfig, SampleConfig
from xrec.config.profile import ProfileConfig
from xrec.data.release import clean_text
from xrec.data.unpickling import load_frame
from xrec.evaluation.sources import Sources
from xrec.evaluation.statements import statements
from xrec.evaluation.support import SupportChecker
from xrec.profiles.extractive import ExtractiveWriter
from xrec.profiles.records import record_batches
from xrec.workspace import Workspace

TRUE_KINDS = ("true", "reworded")
KINDS = ("denied", "opposite", "invented", "altered")
# What introduces a thing that somebody likes, in published profiles and explanations and in those of the sample world.
_THING = re.compile(
    r"\b(?:for|because of|due to|offer|offers|offering|enjoys?|appreciates?|values?|features?|featuring|with|known for|"
    r"looks for|include|includes|including|mention|praises|about|like|likes|come to this place for)\s+"
    r"(?:(?:its|their|the|an?|his|her|your)\s+)?([a-z][\w'’-]*(?: [\w'’&-]+){1,4}?)"
    r"(?=[,.;]| and | or | as | that | which | in | at | while | where | who | for | to )"
)
_NO_THING = re.compile(
    r"^(?:own|other|such|any|in|on|of|more|many|various|overall|\w+ing)\b|\b(?:who|they|them|it|is|are|would|to|with|of|one"
    r"|don't|people|those|this|the|an?|its|their|her|his|because|for|users?|books?|business|businesses|items|place|places|options?"
    r"|choices|variety|reads?|experiences?|more|such|also|good|great)\b|[A-Z]"
)
_DENIAL = re.compile(r"\b(?:not|no|never|without|however|despite|although|lack\w*|may find)\b|n't", re.IGNORECASE)
_TRUE = (
    "The user would enjoy it because of the {thing}.",
    "They appreciate the {thing}.",
    "What should please the user is the {thing}.",
    "The {thing} is a good reason for the user to choose it.",
)
_DENYING = (
    "There is no {thing}.",
    "The user would not enjoy it for its {thing}.",
    "It never offers {thing}.",
    "It isn't known for the {thing}.",
    "It lacks the {thing} that the user looks for.",
)
_ALTERED = ("for $37", "at Zanzibar Corner", "since 1871", "by Ottoline Quist", "on 14 floors")
_OPPOSITES = """
friendly rude, fast slow, quick slow, delicious bland, tasty tasteless, fresh stale, clean dirty, affordable
overpriced, cozy cramped, generous tiny, quiet noisy, large small, great terrible, good bad, excellent awful, amazing
disappointing, attentive careless, unique ordinary, strong weak, captivating boring, engaging dull, gripping tedious,
suspenseful predictable, relatable unconvincing, complex shallow, heartwarming depressing, happy sad, rich poor, warm
cold, flavorful flavorless, authentic fake, helpful unhelpful, knowledgeable clueless, convenient inconvenient,
reasonable excessive, beautiful ugly, vibrant lifeless, diverse limited, thrilling dreary, compelling forgettable,
sweet bitter, spicy mild, live recorded, outdoor indoor, free expensive, homemade industrial, late-night daytime, low
high, sunny gloomy, spacious cramped, well-developed flat, strong feeble, fast-paced slow, emotional cold,
high-quality shoddy, romantic unromantic
"""
_SAME = """
atmosphere ambiance, staff employees, food cuisine, dishes plates, menu selection, drinks beverages, prices rates,
affordable inexpensive, delicious tasty, friendly welcoming, cozy comfortable, service waiters, variety range, unique
distinctive, flavors tastes, great excellent, quick fast, story tale, stories tales, plot storyline, characters
protagonists, thrilling exciting, captivating engrossing, romance love, mystery suspense, suspenseful tense,
compelling gripping, relationships bonds, growth development, novels fiction, humor wit, humorous funny, dark grim,
strong powerful, complex intricate, historical period, generous ample, portions servings, fresh new, seating tables,
views panorama, live in-person, homemade handmade, pastries cakes, craft artisanal, beer ale, brunch breakfast, scenic
picturesque
"""


def _words(lines: str) -> dict[str, str]:
    return dict(entry.split() for entry in lines.split(","))


OPPOSITES, SAME = _words(_OPPOSITES), _words(_SAME)


@dataclass(frozen=True)
class Planted:
    """A statement of known truth.

    Attributes:
        text: the statement.
        kind: `true` or `reworded`, which are true, or one of `KINDS`.
        sources: the texts that decide.
        exchanged: for `reworded` and `opposite`, the word of the source and the one in its place.
    """

    text: str
    kind: str
    sources: tuple[str, ...]
    exchanged: tuple[str, str] | None = None


def things(text: str) -> list[str]:
    """The things that a text says somebody likes, as phrases of two to five words."""
    found = [m for statement in statements(text) if not _DENIAL.search(statement) for m in _THING.findall(statement)]
    return [thing for thing in dict.fromkeys(found) if not _NO_THING.search(thing)]


def plant(sources: Sequence[Sequence[str]], seed: int = 0) -> list[Planted]:
    """Statements about n pairs, of each kind at most one a pair.

    Args:
        sources: the texts of each pair.
        seed: of templates, things and strangers.
    """
    draw = random.Random(seed)
    named = [[thing for text in texts for thing in things(text)] for texts in sources]
    strangers = [thing for own in named for thing in own]
    found: list[Planted] = []
    for own, texts in zip(named, sources, strict=True):
        if own:
            found += _about(own, strangers, tuple(texts), draw)
    return found


def _about(own: list[str], strangers: list[str], sources: tuple[str, ...], draw: random.Random) -> list[Planted]:
    thing = draw.choice(own)
    found = [
        Planted(draw.choice(_TRUE).format(thing=thing), "true", sources),
        Planted(draw.choice(_DENYING).format(thing=thing), "denied", sources),
        Planted(draw.choice(_TRUE).format(thing=f"{thing} {draw.choice(_ALTERED)}"), "altered", sources),
    ]
    for kind, words in (("reworded", SAME), ("opposite", OPPOSITES)):
        changed = [new for new in (replaced(other, words, draw) for other in own) if new]
        if changed:
            new, exchanged = draw.choice(changed)
            found.append(Planted(draw.choice(_TRUE).format(thing=new), kind, sources, exchanged))
    known = " ".join(sources).lower()
    for stranger in draw.choices(strangers, k=50):
        # Two words that the pair's sources have in no form: a thing that two places share is no invention.
        if sum(word[:5] not in known for word in re.findall(r"[a-z]{4,}", stranger.lower())) >= 2:
            return [*found, Planted(draw.choice(_TRUE).format(thing=stranger), "invented", sources)]
    return found


def replaced(thing: str, words: dict[str, str], draw: random.Random) -> tuple[str, tuple[str, str]] | None:
    """The phrase with one of its words replaced, and the two words; None where `words` has none of them."""
    known = [word for word in re.findall(r"[\w'’-]+", thing) if word in words]
    if not known:
        return None
    word = draw.choice(known)
    new = re.sub(rf"(?<![\w-]){re.escape(word)}(?![\w-])", words[word], thing, count=1)
    return new, (word, words[word])


@dataclass(frozen=True)
class Rate:
    """How a checker did on one kind of statement.

    Attributes:
        count: statements.
        unsupported: share that it calls unsupported: detections for planted ones, false alarms for true ones.
        auc: probability that a planted one has less support than a true or reworded one; NaN for true ones.
    """

    count: int
    unsupported: float
    auc: float


def rates(checker: SupportChecker, planted: Sequence[Planted], threshold: float = 0.5) -> dict[str, Rate]:
    """Kind -> its rate. A statement that the checker finds nothing to check in counts as supported."""
    found = checker.support([p.text for p in planted], [p.sources for p in planted])
    support = np.nan_to_num(found, nan=1.0)
    kinds = np.array([p.kind for p in planted])
    true = support[np.isin(kinds, TRUE_KINDS)]
    result = {}
    for kind in (*TRUE_KINDS, *KINDS):
        own = support[kinds == kind]
        auc = np.nan if kind in TRUE_KINDS else float((own[:, None] < true).mean() + (own[:, None] == true).mean() / 2)
        result[kind] = Rate(len(own), float((own < threshold).mean()), auc)
    return result


def release_sources(folder: Path, dataset: str, rows: int) -> dict[str, list[list[str]]]:
    """Of published test rows: the reference with the title, and the profiles with the title."""
    frame = load_frame(folder / "xrec-release" / dataset / "tst.pkl")
    text = {name: [clean_text(value) for value in frame[name][:rows]] for name in frame if name not in ("uid", "iid")}
    return {
        "reference": [list(texts) for texts in zip(text["explanation"], text["title"], strict=True)],
        "profiles": [
            list(texts) for texts in zip(text["item_summary"], text["user_summary"], text["title"], strict=True)
        ],
    }


def sample_sources(folder: Path, reviews: int, config: SampleConfig | None = None) -> list[list[str]]:
    """Of the held-out pairs of a sample world: what `Sources` finds, with profiles by the extractive writer."""
    workspace = Workspace(folder)
    sample.run(workspace, config or SampleConfig(users=120, items=80, interactions_per_user=8, features=12))
    preprocess.run(workspace, PreprocessConfig())
    writer = ExtractiveWriter()
    for kind in ("item_profile", "user_profile"):
        side = kind.removesuffix("_profile")
        rows = []
        for batch in record_batches(workspace, ProfileConfig(), kind, 4096):
            answers = asyncio.run(writer.write(kind, batch["record"].to_pylist()))
            own = {"prompt_hash": "", "tokens_in": 0, "tokens_out": 0, "model": writer.model}
            rows += [
                {side: node, "profile": answer.text, "status": answer.status, **own}
                for node, answer in zip(batch[side].to_pylist(), answers, strict=True)
            ]
        workspace.write_table(tables.from_rows(f"{side}_profiles", rows), "profile", f"{side}_profiles")
    sources = Sources.load(workspace, reviews)
    pairs = workspace.read_table("preprocess", "interactions").to_pylist()
    return [sources.of(pair["user"], pair["item"]) for pair in pairs if pair["split"] in ("val", "test")]
