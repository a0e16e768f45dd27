"""What writing texts costs: the estimate before anything is sent, the cap while it runs, the figures after it.

Prices come from the settings; XRec knows none. Counting the tokens of one call is the endpoint's business.
"""

from collections.abc import Iterable
from dataclasses import dataclass

# pyright: reportAttributeAccessIssue=false
# (pyarrow.compute makes its functions at import, where pyright cannot see them)
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from xrec.config import ConfigError, Price
from xrec.profiles.tokens import TOKENS_PER_MESSAGE, estimate_message_tokens, estimate_tokens


@dataclass(frozen=True)
class Estimate:
    """What a number of rows will take.

    Attributes:
        rows: requests.
        tokens_in: of their prompts.
        tokens_out: at most, of their answers.
        cost: at most, in the price's currency, without repetitions; None without a price.
    """

    rows: int
    tokens_in: int
    tokens_out: int
    cost: float | None

    def __add__(self, other: "Estimate") -> "Estimate":
        cost = None if self.cost is None or other.cost is None else self.cost + other.cost
        return Estimate(
            self.rows + other.rows, self.tokens_in + other.tokens_in, self.tokens_out + other.tokens_out, cost
        )


def cost_of(tokens_in: float, tokens_out: float, price: Price | None) -> float | None:
    """What these tokens cost; None without a price, which is for a million of them."""
    return None if price is None else (tokens_in * price.input + tokens_out * price.output) / 1e6


def estimate(rows: int, tokens_in: int, max_tokens: int, price: Price | None) -> Estimate:
    """The estimate for `rows` prompts of `tokens_in` tokens together, each answered by at most `max_tokens`."""
    return Estimate(rows, tokens_in, rows * max_tokens, cost_of(tokens_in, rows * max_tokens, price))


def cost_at_most(chats: Iterable[list[dict[str, str]]], max_tokens: int, price: Price | None) -> float:
    """What asking these chats once may cost, as far as their length tells; 0 without a price."""
    tokens = [estimate_message_tokens(messages) for messages in chats]
    return cost_of(sum(tokens), len(tokens) * max_tokens, price) or 0.0


class Budget:
    """A cap on what is spent, for work that is begun block by block by several workers.

    A block is begun when what is spent, what the blocks at work may still cost and what it may cost itself stay within
    the cap together. So the cap is exceeded only by what a block costs beyond its estimate (answers asked for again).

    Args:
        cap: the most to spend; None: no limit.
        spent: what earlier work has spent.
    """

    def __init__(self, cap: float | None, spent: float = 0.0):
        self.cap, self.spent = cap, spent
        self.blocks, self.at_work = 0, 0.0

    def reserve(self, amount: float) -> bool:
        """Whether a block that may cost `amount` may begin now, beside those at work."""
        fits = self.fits(amount)
        if fits:
            self.blocks, self.at_work = self.blocks + 1, self.at_work + amount
        return fits

    def fits(self, amount: float) -> bool:
        """Whether `reserve` would say yes."""
        return self.cap is None or self.spent + self.at_work + amount <= self.cap

    def settle(self, reserved: float, spent: float) -> None:
        """A block that had reserved so much has ended and cost so much."""
        self.blocks -= 1
        # Sums of floats leave a remainder, which would count as work for ever.
        self.at_work = self.at_work - reserved if self.blocks else 0.0
        self.spent += spent


def text_metrics(table: pa.Table, name: str) -> dict[str, float]:
    """The figures of a finished table of texts: rows, failures, words, tokens, attempts, latency (seconds), cost.

    Args:
        table: with the provenance columns.
        name: the table's, which leads the figures' names.
    """
    ok = pc.equal(table["status"], "ok")
    figures: dict[str, float] = {
        "rows": len(table),
        "failed": len(table) - (pc.sum(ok).as_py() or 0),
        "tokens_in": pc.sum(table["tokens_in"]).as_py() or 0,
        "tokens_out": pc.sum(table["tokens_out"]).as_py() or 0,
        "attempts": pc.sum(table["attempts"]).as_py() or 0,
    }
    latency = table["latency"].drop_null().to_numpy()
    if len(latency):
        for percent in (50, 95, 99):
            figures[f"latency_p{percent}"] = float(np.percentile(latency, percent))
    if table["cost"].null_count < len(table):
        figures["cost"] = pc.sum(table["cost"]).as_py()
    return {f"{name}/{key}": value for key, value in figures.items()}


def failure_reasons(table: pa.Table) -> dict[str, int]:
    """How many rows failed for each reason, the word before the colon in `error`, most frequent first."""
    errors = table.filter(pc.equal(table["status"], "failed"))["error"].to_pylist()
    reasons: dict[str, int] = {}
    for error in errors:
        reason = (error or "unknown").partition(":")[0]
        reasons[reason] = reasons.get(reason, 0) + 1
    return dict(sorted(reasons.items(), key=lambda item: -item[1]))


def spent(tables: Iterable[pa.Table]) -> float:
    """What the rows of these tables have cost."""
    return float(sum(pc.sum(table["cost"]).as_py() or 0.0 for table in tables))


class TokenCounter:
    """Counts tokens by a tokenizer or, without one, estimates them from the text's length.

    Args:
        tokenizer: Hugging Face name or folder; None: estimate.
        sample: texts, by whose tokens a character is counted where only a number of characters is known.

    Attributes:
        how: in words, for a report.
    """

    def __init__(self, tokenizer: str | None, sample: Iterable[str] = ()):
        self.tokenizer = None
        self.how = "estimated from their length"
        if tokenizer is not None:
            from transformers import AutoTokenizer

            try:
                self.tokenizer = AutoTokenizer.from_pretrained(tokenizer)
            except OSError as error:
                raise ConfigError(
                    f"profile.tokenizer = {tokenizer!r}: {error}; name a model or a folder that has one"
                ) from error
            self.how = f"by the tokenizer {tokenizer}"
        texts = list(sample)
        characters = sum(map(len, texts))
        self.per_character = sum(map(self.count, texts)) / characters if characters else 1 / 4

    def count(self, text: str) -> int:
        """Tokens of one text."""
        return estimate_tokens(text) if self.tokenizer is None else len(self.tokenizer(text).input_ids)

    def of_messages(self, messages: list[dict[str, str]]) -> int:
        """Tokens of a chat's messages, with what a template adds to each."""
        return sum(self.count(message["content"]) + TOKENS_PER_MESSAGE for message in messages)

    def of_characters(self, characters: int) -> int:
        """Tokens of so many characters of records."""
        return round(characters * self.per_character)
