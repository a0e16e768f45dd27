"""What was dropped from a dump and why: counts by reason, and a few examples that say where to look.

Which rows are dropped is the business of the modules that read and filter.
"""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

EXAMPLES = 5


@dataclass
class Tally:
    """Rows read, kept and dropped of one kind of table.

    Attributes:
        read: rows (lines) seen.
        kept: rows that went on.
        dropped: rows by reason.
        examples: by reason, at most `EXAMPLES` of `{"file", "byte" | "row", "detail"}`.
    """

    read: int = 0
    kept: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    examples: dict[str, list[dict[str, Any]]] = field(default_factory=dict)

    def drop(self, reason: str, count: int = 1, examples: Iterable[dict[str, Any]] = ()) -> None:
        """Count rows dropped for `reason`; examples beyond the first `EXAMPLES` are not kept."""
        if not count:
            return
        self.dropped[reason] += count
        known = self.examples.setdefault(reason, [])
        for example in examples:
            if len(known) >= EXAMPLES:
                break
            known.append(example)

    def add(self, other: "Tally") -> None:
        """Add the counts of another part."""
        self.read += other.read
        self.kept += other.kept
        for reason, count in other.dropped.items():
            self.drop(reason, count, other.examples.get(reason, ()))

    def as_json(self) -> dict[str, Any]:
        """What a part's file carries; `from_json` is its inverse."""
        return {"read": self.read, "kept": self.kept, "dropped": dict(self.dropped), "examples": self.examples}

    @staticmethod
    def from_json(value: dict[str, Any]) -> "Tally":
        return Tally(value["read"], value["kept"], Counter(value["dropped"]), value["examples"])

    def report(self) -> dict[str, Any]:
        """The report for people: by reason, most frequent first, the count, its share of what was read, examples."""
        reasons = {
            reason: {"count": count, "share": round(count / max(self.read, 1), 6), "examples": self.examples[reason]}
            for reason, count in sorted(self.dropped.items(), key=lambda pair: (-pair[1], pair[0]))
        }
        return {"read": self.read, "kept": self.kept, "dropped": reasons}

    def metrics(self, name: str) -> dict[str, float]:
        """Flat figures: `<name>/read`, `<name>`, `dropped/<name>/<reason>`."""
        counts = {f"dropped/{name}/{reason}": count for reason, count in sorted(self.dropped.items())}
        return {name: self.kept, f"{name}/read": self.read, **counts}

    def summary(self) -> str:
        """`12 dropped (10 low_rating, 2 bad_json)`."""
        if not self.dropped:
            return "none dropped"
        reasons = ", ".join(f"{count:,} {reason}" for reason, count in self.dropped.most_common())
        return f"{self.dropped.total():,} dropped ({reasons})"
