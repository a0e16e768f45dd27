"""An explanation taken apart into statements, each of which can be supported or not by itself.

Sentences are segtok's, which knows abbreviations and decimal points. A sentence is taken apart further at semicolons;
where two clauses with a verb each are joined; and where one reason is given as a list (`for its bread, its tea and its
garden`), whose members each keep the words before the list, so that they are still sentences. Rules of English form,
no parser: they may leave several reasons in a statement, but lose none.
"""

import re

from segtok.segmenter import split_single

_VERBS = """
am is are was were be been has have had do does did will would can could may might shall should must offers offer
offered provides provide makes make made serves serve served features feature includes include contains has likes like
liked enjoys enjoy enjoyed loves love loved values value valued appreciates appreciate appreciated prefers prefer
praises praise praised mentions mentioned comes come gets get wants want needs need feels feel looks look seeks seek
tends tend keeps keep finds find found cares care visits visited adds add ensures gives give takes take explores
explore delivers cater caters
"""
_HAS_VERB = re.compile(rf"\b(?:{'|'.join(_VERBS.split())})\b|\w(?:n't|'s|'re|'ve|'ll)\b", re.IGNORECASE)
# A second clause begins with its subject.
_SUBJECT = (
    r"(?:it|its|it's|they|they're|their|the|this|that|these|those|there|he|she|his|her|you|your|we|i|users?|fans)"
)
_JOINT = re.compile(rf",?\s+(?:and|but|while|whereas|although|though|yet)\s+(?={_SUBJECT}\b)", re.IGNORECASE)
# What a list of reasons comes after; a possessive belongs to all of its members.
_BEFORE_LIST = re.compile(
    r"\b(?:for|because of|due to|with|offer(?:s|ing)?|provid(?:es?|ing)|featur(?:es?|ing)|includ(?:es?|ing)|such as"
    r"|(?<!would )(?:enjoy|value|appreciate|like|love)s?)\s+(?:(?:its|their|his|her|your)\s+)?",
    re.IGNORECASE,
)
_COMMA = re.compile(r",\s+(?:(?:and|or|as well as|along with)\s+)?")
# What begins like this after a comma goes on with the sentence and is no member of a list.
_GOES_ON = re.compile(
    r"(?:(?:it|they|he|she|you|we|i|this|these|there|that|users?|so|in|on|at|by|with|which|who|where|when|but|although"
    r"|though|while|despite|even|especially|particularly|ultimately|all|set|if|as|because|since|not|making|creating"
    r"|offering|providing|ensuring|catering|adding|giving|featuring|including|leaving|allowing|keeping)\b"
    r"|\w+ing (?:an?|the|it|them|you|their|its|to)\b)",
    re.IGNORECASE,
)
_DETERMINER = re.compile(r"(?:the|its|their|his|her|your)\b", re.IGNORECASE)
_POSSESSIVE, _ARTICLE = re.compile(r"\b(?:its|their|his|her|your)\s+$", re.IGNORECASE), re.compile(r"^(?:an?|the)\s+")
_FINITE = re.compile(rf"(?:{'|'.join(_VERBS.split())})\b", re.IGNORECASE)


def statements(text: str) -> list[str]:
    """The statements of an English text, in order; none where it has no word.

    Every word of the text is in one of them. A member of a list is preceded by the words before the list, which are
    therefore in several.
    """
    found = []
    for sentence in sentences(text):
        for part in re.split(r";\s+", sentence):
            for clause in _clauses(part):
                found += [statement for statement in _members(clause) if _has_word(statement)]
    return found


def sentences(text: str) -> list[str]:
    """The sentences of a text, white space single; line breaks end one."""
    found = (" ".join(s.split()) for line in text.splitlines() if line.strip() for s in split_single(line))
    return [sentence for sentence in found if _has_word(sentence)]


def _clauses(sentence: str) -> list[str]:
    """The sentence, cut where a conjunction joins two sides that have a verb each."""
    start, found = 0, []
    joints = list(_JOINT.finditer(sentence))
    for number, joint in enumerate(joints):
        end = joints[number + 1].start() if number + 1 < len(joints) else len(sentence)
        if _HAS_VERB.search(sentence, start, joint.start()) and _HAS_VERB.search(sentence, joint.end(), end):
            found.append(_sentence(sentence[start : joint.start()]))
            start = joint.end()
    return [*found, _sentence(sentence[start:])]


def _members(clause: str) -> list[str]:
    """A statement for each member of the first list of reasons; the clause itself where it has none."""
    opening = _BEFORE_LIST.search(clause)
    if opening is None:
        return [clause]
    head, members, start = clause[: opening.end()], [], opening.end()
    for comma in [*_COMMA.finditer(clause, start), None]:
        members.append(clause[start : comma.start() if comma else len(clause)])
        start = comma.end() if comma else len(clause)
        rest = clause[start:]
        if _FINITE.match(rest):
            return [clause]  # the commas enclose an insertion before the verb
        if _GOES_ON.match(rest) or (_DETERMINER.match(rest) and _HAS_VERB.search(rest.split(",")[0])):
            break
    adjectives = len(members) == 2 and " " not in members[0]
    if len(members) < 2 or adjectives:
        return [clause]
    if _POSSESSIVE.search(head):
        members = [_ARTICLE.sub("", member) for member in members]
    return [*(_sentence(head + member) for member in members), *([_sentence(rest)] if rest else [])]


def _sentence(text: str) -> str:
    text = text.strip().rstrip(",;:")
    if not text:
        return ""
    text = text[0].upper() + text[1:]
    return text if text.endswith((".", "!", "?", '"', "”")) else f"{text}."


def _has_word(text: str) -> bool:
    return any(character.isalnum() for character in text)
