"""Checkers that judge meaning: an entailment model, and a language model that is asked."""

import json
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import torch
from transformers import AutoModelForSequenceClassification

from xrec.evaluation.pretrained import by_length, load_config, load_model
from xrec.evaluation.statements import sentences

_SETTING = "evaluate.factuality.nli_model"
_LABEL = "entailment"
PASSAGE_SENTENCES = 3
"""Sentences of a source that an entailment model reads at once: more than most were trained on costs accuracy."""
_PAIRS_AT_ONCE = 4096
SCHEMA = {
    "type": "object",
    "properties": {"supported": {"type": "boolean"}},
    "required": ["supported"],
    "additionalProperties": False,
}
_INSTRUCTION = (
    "You check statements against sources. Say whether at least one of the sources supports the statement: whether it "
    "says the same, or something that the statement follows from. A statement that a source contradicts, or that adds "
    "something that no source says, is not supported. Ignore that it is put as what a user would enjoy: check what it "
    'says about the item and about the user\'s taste. Answer in JSON: {"supported": true} or {"supported": false}.'
)


class NliChecker:
    """Support as the greatest probability of entailment over the passages of the sources.

    A passage is up to `PASSAGE_SENTENCES` sentences of one source, each beginning where the one before ended, and is
    the premise; the statement is the hypothesis.

    Args:
        model: any sequence classifier with a label `entailment`, by Hugging Face name or folder.
        device: torch device.
        batch_size: pairs of passage and statement that the model reads at once.

    Raises:
        ValueError: it cannot be loaded, or has no such label.
    """

    def __init__(self, model: str, device: str = "cpu", batch_size: int = 32):
        self.name, self.batch_size, self.pairs = model, batch_size, 0
        labels = {int(place): str(label) for place, label in load_config(model, _SETTING).id2label.items()}
        found = [place for place, label in labels.items() if label.lower() == _LABEL]
        if len(found) != 1:
            raise ValueError(
                f"{_SETTING} = {model!r} has the labels {', '.join(labels.values())} and not the one label {_LABEL!r}; "
                "name a model that was trained for natural language inference"
            )
        self.entailment = found[0]
        self.tokenizer, self.model = load_model(AutoModelForSequenceClassification, model, _SETTING, device)

    def support(self, statements: Sequence[str], sources: Sequence[Sequence[str]]) -> np.ndarray:
        """See `SupportChecker`."""
        found, owners, pairs = np.zeros(len(statements)), [], []
        for row, (statement, texts) in enumerate(zip(statements, sources, strict=True)):
            for text in texts:
                for passage in passages(text):
                    owners.append(row)
                    pairs.append((passage, statement))
            if len(pairs) >= _PAIRS_AT_ONCE or row == len(statements) - 1:
                np.maximum.at(found, np.array(owners, np.int64), self._entailed(pairs))
                owners, pairs = [], []
        return found

    def facts(self) -> dict[str, Any]:
        return {"checker": "nli", "model": self.name, "pairs": self.pairs}

    def _entailed(self, pairs: list[tuple[str, str]]) -> np.ndarray:
        """`[n]`, the probability that each passage entails its statement."""
        found = np.zeros(len(pairs))
        self.pairs += len(pairs)
        for rows in by_length([p for p, _ in pairs], [s for _, s in pairs], self.batch_size):
            passage, statement = zip(*(pairs[row] for row in rows), strict=True)
            # Of a pair that is too long the longer text is cut, which is the passage unless generation ran wild.
            encoded = self.tokenizer(
                list(passage), list(statement), truncation="longest_first", padding=True, return_tensors="pt"
            ).to(self.model.device)
            with torch.inference_mode():
                found[rows] = self.model(**encoded).logits.double().softmax(-1)[:, self.entailment].cpu().numpy()
        return found


class Asked(Protocol):
    """Whoever answers chats in JSON (`judge.Judge`)."""

    def ask(self, chats: Sequence[list[dict]], schema: dict, parse: Any) -> list[Any]: ...

    def facts(self) -> dict[str, Any]: ...


class JudgeChecker:
    """Support as the answer of a language model, 0 or 1; NaN where no answer came.

    One question a statement, which quotes all of its sources; a statement without a source is not asked about, and has
    support 0.

    Args:
        judge: who is asked.
    """

    def __init__(self, judge: Asked):
        self.judge = judge
        self.asked = self.unanswered = 0

    def support(self, statements: Sequence[str], sources: Sequence[Sequence[str]]) -> np.ndarray:
        """See `SupportChecker`."""
        found = np.zeros(len(statements))
        rows = [row for row, texts in enumerate(sources) if texts]
        chats = [question(statements[row], sources[row]) for row in rows]
        answers = self.judge.ask(chats, SCHEMA, parse_supported) if chats else []
        for row, answer in zip(rows, answers, strict=True):
            found[row] = np.nan if answer is None else float(answer)
        self.asked += len(rows)
        self.unanswered += sum(answer is None for answer in answers)
        return found

    def facts(self) -> dict[str, Any]:
        own = {"checker": "judge", "asked": self.asked, "unanswered": self.unanswered}
        return self.judge.facts() | own


def passages(text: str) -> list[str]:
    """The text in parts of `PASSAGE_SENTENCES` sentences."""
    parts = sentences(text)
    return [" ".join(parts[n : n + PASSAGE_SENTENCES]) for n in range(0, len(parts), PASSAGE_SENTENCES)]


def question(statement: str, sources: Sequence[str]) -> list[dict]:
    """The chat that asks whether the sources support a statement."""
    # JSON keeps whatever a review says inside its quotes.
    content = json.dumps({"sources": list(sources), "statement": statement}, ensure_ascii=False, indent=1)
    return [{"role": "system", "content": _INSTRUCTION}, {"role": "user", "content": content}]


def parse_supported(text: str) -> bool:
    """The verdict in an answer.

    Raises:
        ValueError: the answer is no JSON object with a boolean `supported`.
    """
    answer = json.loads(text)
    if not isinstance(answer, dict) or not isinstance(answer.get("supported"), bool):
        raise ValueError(f"answer {text[:80]!r} is not an object with a boolean 'supported'")
    return answer["supported"]
