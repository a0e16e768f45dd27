"""The phrases of a text that it is most likely about: YAKE's ranking, narrowed to what reads like a thing.

YAKE scores every sequence of up to three words. Of these a phrase is kept if it has no stop word and no common verb in
it, and some word that says more than that there is a review. Phrases of several words, in early sentences, and after an
article or a possessive go before others, what a clause negates or complains about comes late, and single words without
an article, mostly adjectives, are for texts that have nothing else. English only.
"""

import re
from dataclasses import dataclass

import yake

# Forms of frequent English verbs, which YAKE's own list of stop words lacks: a thing that users praise is none of them.
_VERBS = """
add added ate bought bring brings brought built buy call called came cared cares caught chose come decide decided eat
eaten enjoy enjoyed enjoying enjoys expect expected feel feels felt find finding finds found gave give given gone grab
grabbed had happen happened headed hear heard held hold hope hoped join joined keep kept knew lead leave leaves leaving
left liked likes lived looked lost loved loves loving made make makes making meet mentioned met miss missed moved need
needed offer offered offers open opened opens paid pay pick picked picking prefer preferred prepared provide provided
provides pull pulled put ran read realized recommend recommended remember remembered return returned run sat serve
served serves shopping show showed sit sitting spend spent stand start started stay stayed staying stood stop stopped
suggest suggested surprised talk talked talking taste tasted tell telling tells think thought told took treated tried
turn turned understand visited visiting wait waited waiting walk walked walking wanted watch watched wear wish won work
worked works worn worth wrote
"""
# Words of every review, and of profiles about users and items, that say nothing about what is reviewed.
_GENERIC = """
absolute absolutely amazing appeal area awesome bad best better bit boyfriend bunch business businesses city couple
customer customers daughter day days definitely delicious early easy evening excellent extremely fact family fantastic
favorite feedback finally fine first friday friend friends girlfriend good great guest guests guy guys happy hard
helpful highly home hour hours huge husband incredibly item items job kid kids kind last listed literally lot lots love
minute minutes mom month months morning neighborhood nice night part people perfect person personally place places
plenty point pretty problem profile quality rating ready reason review reviewer reviewers reviews saturday several side
simply son sort spot star stars store stuff suit sunday super superb tasty thing things time times today tomorrow
tonight totally town trip type user users visit visitor visitors visits way week weekend weeks wife wonderful year years
yesterday yummy
"""
# Words that turn what their clause is about into something missing or disliked.
_COMPLAINTS = """
awful bad bland broken cannot complain complaint dirty disappointed disappointing disappointment horrible lack lacked
lacking lacks mediocre never no noisy nor not overpriced poor problem problems rude slimy slow soggy stale terrible
unfortunately waste without worse worst wrong
"""
# Words after which a thing is named.
_DETERMINERS = "a about an for has have her his its of some that the their these this those with"
_SENTENCE_END = re.compile(r"(?<=[.!?])[\"'”’)\]]*\s+|\s*\n+\s*")
_CLAUSE_END = re.compile(r"[,;:()\[\]\"“”]|\s[-–—]+\s|--+|\b(?:but|however|although|though|except|yet|because)\b", re.I)
_WORD = re.compile(r"[^\W_]+(?:['’\-&][^\W_]+)*")
_CANDIDATES = 60
# By how much a phrase's score gets worse: of one word; of several without a determiner; complained of.
_SINGLE_WORD, _NO_DETERMINER, _COMPLAINT = 8.0, 2.0, 16.0


class PhraseExtractor:
    """Chooses phrases of English texts. Not for use by several threads at once."""

    def __init__(self):
        self._yake = yake.KeywordExtractor(lan="en", n=3, dedup_lim=1.0, top=_CANDIDATES)
        self._yake.stopword_set |= set(_VERBS.split())
        self._generic = self._yake.stopword_set | set(_GENERIC.split())

    def choose(self, text: str, count: int) -> list[str]:
        """At most `count` phrases, best first, no two with a word in common; none where the text has no such phrase."""
        tokens = _Tokens(text)
        scored, bare = [], []
        for phrase, score in self._yake.extract_keywords(text):
            words = phrase.lower().split()
            if any(word in self._yake.stopword_set for word in words) or all(word in self._generic for word in words):
                continue
            places = [(tokens.weight(first, len(words)), first) for first in tokens.find(words)]
            if places:
                weight, first = min(places)
                adjective = len(words) == 1 and not tokens.determined(first)
                (bare if adjective else scored).append(
                    (float(score) * weight, first, tokens.written(first, len(words)))
                )
        chosen: list[str] = []
        taken: set[str] = set()
        for _, _, written in sorted(scored or bare):
            stems = {word.lower().rstrip("s") for word in written.split()}
            if len(chosen) < count and not stems & taken:
                chosen.append(written)
                taken |= stems
        return chosen


@dataclass(frozen=True)
class _Token:
    """A word of a text: as written, in lower case without a possessive's s, and the numbers of clause and sentence."""

    written: str
    normal: str
    clause: int
    sentence: int
    starts_clause: bool
    # Nothing but white space lies between it and the word before.
    follows: bool


class _Tokens:
    """The words of a text, clause by clause."""

    _complaints, _determiners = frozenset(_COMPLAINTS.split()), frozenset(_DETERMINERS.split())

    def __init__(self, text: str):
        self._tokens: list[_Token] = []
        self._complained: list[bool] = []
        self._shouted: list[bool] = []
        self._at: dict[str, list[int]] = {}
        for number, sentence in enumerate(sentences(text)):
            for clause in _CLAUSE_END.split(sentence):
                self._add(clause, number)

    def find(self, words: list[str]) -> list[int]:
        """Where a phrase, given in lower case, begins."""
        return [first for first in self._at.get(words[0], []) if self._is_at(first, words)]

    def weight(self, first: int, length: int) -> float:
        """By how much the score of a phrase at this place, of which lower is better, gets worse."""
        weight = 1.0 + self._tokens[first].sentence
        if length == 1:
            weight *= _SINGLE_WORD
        elif not self.determined(first):
            weight *= _NO_DETERMINER
        return weight * (_COMPLAINT if self._complained[self._tokens[first].clause] else 1.0)

    def determined(self, first: int) -> bool:
        """Whether the word before is one after which a thing is named."""
        return not self._tokens[first].starts_clause and self._tokens[first - 1].normal in self._determiners

    def written(self, first: int, length: int) -> str:
        """A phrase as written, but for the capital of a clause's first word and for shouting."""
        words = [token.written for token in self._tokens[first : first + length]]
        if self._tokens[first].starts_clause and not words[0].isupper():
            words[0] = words[0].lower()
        phrase = " ".join(words)
        return phrase.lower() if self._shouted[self._tokens[first].clause] else phrase

    def _add(self, clause: str, sentence: int) -> None:
        number, end, complained = len(self._complained), 0, False
        for match in _WORD.finditer(clause):
            normal = match.group().lower().replace("’", "'")
            complained |= normal in self._complaints or normal.endswith("n't")
            normal = normal.removesuffix("'s")
            self._at.setdefault(normal, []).append(len(self._tokens))
            follows = clause[end : match.start()].isspace()
            self._tokens.append(_Token(match.group(), normal, number, sentence, end == 0, follows))
            end = match.end()
        self._complained.append(complained)
        self._shouted.append(clause.isupper() and " " in clause.strip())

    def _is_at(self, first: int, words: list[str]) -> bool:
        tokens = self._tokens[first : first + len(words)]
        return [token.normal for token in tokens] == words and all(
            token.follows and token.clause == tokens[0].clause for token in tokens[1:]
        )


def sentences(text: str) -> list[str]:
    """The sentences of a text, stripped; line breaks end one."""
    return [part.strip() for part in _SENTENCE_END.split(text.strip()) if part and any(c.isalnum() for c in part)]
