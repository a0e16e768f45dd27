"""Profiles and explanations without a language model: key phrases of the records, put into plain sentences.

YAKE ranks the phrases of a text by statistics of its own words (Campos et al. 2020); `phrases.py` chooses among them.
A text says no more than that these phrases occur, so it is a baseline and an offline default, and its rows name
`extractive-yake-<version>` as their model. The same record gives the same text, always.
"""

import asyncio
import hashlib
import json
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from importlib.metadata import version
from typing import Any

from xrec.config.profile import TextKind
from xrec.profiles.answers import Answer
from xrec.profiles.phrases import PhraseExtractor, sentences

# Several wordings of the same statement, so that a model which is tuned on the texts does not learn one by heart.
_ITEM = (
    "Users who value {phrases} would enjoy {title}.",
    "Users who look for {phrases} would enjoy {title}.",
    "{title} would suit users who enjoy {phrases}.",
)
_USER = (
    "The user would enjoy items that offer {phrases}.",
    "The user would enjoy items known for {phrases}.",
    "Items with {phrases} would appeal to the user.",
)
_EXPLANATION = (
    "The user would enjoy this item because of {phrases}.",
    "The user would enjoy this item because it offers {phrases}.",
    "The user would enjoy this item because they care about {phrases}.",
    "The user would enjoy this item because they appreciate {phrases}.",
    "The user would enjoy this item because they value {phrases}.",
    "The user would enjoy this item because they look for {phrases}.",
)
_MOST_PHRASES = 3
_MOST_ATTRIBUTES = 4
# A user's own words weigh more than what a profile says about everybody who likes the item.
_FIELDS = (("review", 2), ("profile", 1))
# Titles of products run to dozens of words.
_TITLE_WORDS = 12


class ExtractiveWriter:
    """A `Writer` that asks nobody.

    Args:
        max_words: longest text, in words.
    """

    def __init__(self, max_words: int = 50):
        self.max_words = max_words
        self.model = f"extractive-yake-{version('yake')}"
        self._phrases = PhraseExtractor()
        self._alone = threading.Lock()
        self._compose: dict[TextKind, Callable[[dict[str, Any]], list[str]]] = {
            "item_profile": self._item_profile,
            "user_profile": self._user_profile,
            "explanation": self._explanation,
        }

    async def write(self, kind: TextKind, records: list[str]) -> list[Answer]:
        """One text a record; a record without words has status `failed` and an error that begins with `empty:`."""
        # Off the event loop, which other rows' work shares.
        return await asyncio.to_thread(self._write_all, kind, records)

    def _write_all(self, kind: TextKind, records: list[str]) -> list[Answer]:
        with self._alone:
            return [self._write(kind, record) for record in records]

    def _write(self, kind: TextKind, record: str) -> Answer:
        started = time.perf_counter()
        text = within(self._compose[kind](json.loads(record)), self.max_words)
        return Answer(
            text=text,
            model=self.model,
            tokens_in=0,
            tokens_out=0,
            attempts=0,
            latency=time.perf_counter() - started,
            status="ok" if text else "failed",
            error=None if text else "empty: the record has no words to draw a text from",
        )

    def _explanation(self, record: dict[str, Any]) -> list[str]:
        review = record["review"]
        found = sentences(review)
        # A reason for every two sentences: a short review is about one thing.
        phrases = self._phrases.choose(review, max(1, min(_MOST_PHRASES, len(found) // 2)))
        if phrases:
            return [_worded(_EXPLANATION, review, phrases=listed(phrases))]
        return [f"The user would enjoy this item because, in their words: {_sentence(found[0])}"] if found else []

    def _item_profile(self, record: dict[str, Any]) -> list[str]:
        title, description = _shortened(record["title"]), record.get("description", "")
        texts = [(review, 1) for review in record.get("reviews", [])] or [(description, 1)]
        phrases = self._voted(texts, [record["title"]])
        attributes = list(_attribute_values(record.get("attributes")))[:_MOST_ATTRIBUTES]
        parts = [_worded(_ITEM, title, phrases=listed(phrases), title=title)] if phrases else []
        if not parts and _has_words(title):
            parts = [f"Users who look for {title} would enjoy this item."]
        parts += [_sentence(part) for part in sentences(description)[:1]]
        return parts + ([f"{title} is listed under {listed(attributes)}."] if attributes else [])

    def _user_profile(self, record: dict[str, Any]) -> list[str]:
        items = record["items"]
        texts = [(item[field], weight) for item in items for field, weight in _FIELDS if field in item]
        titles = [item["title"] for item in items]
        phrases = self._voted(texts, titles)
        if phrases:
            return [_worded(_USER, json.dumps(items), phrases=listed(phrases))]
        named = [_shortened(title) for title in titles if _has_words(title)][:_MOST_PHRASES]
        return [f"The user would enjoy items such as {listed(named)}."] if named else []

    def _voted(self, texts: Sequence[tuple[str, int]], titles: Sequence[str]) -> list[str]:
        """The phrases that most of the weighted texts are about; names of the items themselves are none."""
        names = {word for title in titles for word in title.lower().split()}
        votes: Counter[str] = Counter()
        written: dict[str, str] = {}
        weights = [weight for _, weight in texts]
        for text, weight in texts:
            for phrase in self._phrases.choose(text, _MOST_PHRASES):
                if not names & set(phrase.lower().split()):
                    votes[phrase.lower()] += weight
                    written.setdefault(phrase.lower(), phrase)
        # A single word that one text alone is about says little. Of equally many votes the earlier counts.
        agreed = {phrase: count for phrase, count in votes.items() if " " in phrase or count > max(weights)}
        return [written[phrase] for phrase, _ in Counter(agreed or votes).most_common(_MOST_PHRASES)]


def listed(phrases: Sequence[str]) -> str:
    """`a`, `a and b`, `a, b and c`."""
    return " and ".join([", ".join(phrases[:-1]), phrases[-1]] if len(phrases) > 1 else phrases)


def within(parts: Sequence[str], max_words: int) -> str:
    """The sentences that fit into the limit, in order; of the first, as many words as fit."""
    if not parts:
        return ""
    words = parts[0].split()
    if len(words) > max_words:
        return " ".join(words[:max_words]).rstrip(",;:") + "."
    text = " ".join(words)
    for part in parts[1:]:
        if len(text.split()) + len(part.split()) <= max_words:
            text += " " + " ".join(part.split())
    return text


def _worded(wordings: Sequence[str], key: str, **fields: str) -> str:
    digest = hashlib.md5(key.encode(), usedforsecurity=False).digest()
    text = wordings[int.from_bytes(digest[:4], "little") % len(wordings)].format(**fields)
    return text[0].upper() + text[1:]


def _shortened(title: str) -> str:
    return " ".join(title.split()[:_TITLE_WORDS])


def _has_words(text: str) -> bool:
    return any(character.isalnum() for character in text)


def _sentence(text: str) -> str:
    return text if text.endswith((".", "!", "?")) else f"{text}."


def _attribute_values(attributes: Any) -> Iterator[str]:
    """Short texts among the values, lists at commas taken apart; numbers, switches and links are none."""
    if isinstance(attributes, str):
        for value in attributes.split(","):
            value = " ".join(value.split())
            if any(c.isalpha() for c in value) and len(value.split()) <= 4 and "/" not in value:
                yield value
    elif isinstance(attributes, dict | list):
        for value in attributes.values() if isinstance(attributes, dict) else attributes:
            yield from _attribute_values(value)
