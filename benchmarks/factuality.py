"""How many planted hallucinations the checkers find, how many true statements they take for one, and how fast they are.

Statements of known truth come from `tests/planted_hallucinations.py`: about the sample world, and about real rows where
the published data lie beside the project. A statement counts as a hallucination below the threshold. Opposites and
rewordings are told apart by whether the offline checker has the two words in its list.

    python -m benchmarks.factuality [--rows 1500] [--threshold 0.5] [--nli MODEL] [--device cpu]
"""

import argparse
import itertools
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

from xrec.evaluation.factuality import FactualityScorer
from xrec.evaluation.grounding import StatementSupport
from xrec.evaluation.support import LexicalChecker, SupportChecker, claim_of

if TYPE_CHECKING:
    from tests.planted_hallucinations import Planted

ROOT = Path(__file__).resolve().parents[1]


def worlds(rows: int) -> dict[str, list[list[str]]]:
    """Name -> the sources of each pair."""
    from tests.planted_hallucinations import release_sources, sample_sources

    with tempfile.TemporaryDirectory() as folder:
        found = {"sample world, all sources": sample_sources(Path(folder), 5)}
    data = next((p / "shared" / "data" for p in ROOT.parents if (p / "shared" / "data").is_dir()), None)
    for dataset in ("yelp", "amazon") if data else ():
        for kind, sources in release_sources(data, dataset, rows).items():
            found[f"{dataset}, {kind}"] = sources
    return found


def in_its_list(planted: "Planted") -> bool:
    """Whether the offline checker takes the exchanged words for the same concept, or for opposites."""
    one, other = (set(claim_of(f"it is {word}").words) for word in planted.exchanged or ("", " "))
    return one == other


def add_rates(table: Table, world: str, name: str, checker: SupportChecker, planted: list["Planted"], threshold: float):
    """A row for each kind; `opposite` and `reworded` have two."""
    from tests.planted_hallucinations import rates

    for kind, rate in rates(checker, planted, threshold).items():
        auc = "" if rate.auc != rate.auc else f"{rate.auc:.3f}"
        table.add_row(world, name, kind, str(rate.count), f"{rate.unsupported:.3f}", auc)
        if kind in ("opposite", "reworded"):
            for known in (True, False):
                own = [p for p in planted if p.kind != kind or in_its_list(p) == known]
                part = rates(checker, own, threshold)[kind]
                label = f"  {kind}, words {'in' if known else 'not in'} the list"
                table.add_row("", "", label, str(part.count), f"{part.unsupported:.3f}" if part.count else "", "")


def throughput(table: Table, texts: dict[str, list[list[str]]], rows: int) -> None:
    """Predictions a second of the two scorers with the offline checker, in one process."""
    real = next((sources for name, sources in texts.items() if name.endswith("reference")), None)
    if real:
        references = [reference for reference, _ in itertools.islice(itertools.cycle(real), rows)]
        scorer = FactualityScorer(LexicalChecker())
        started = time.perf_counter()
        scorer.score_texts(references, references[1:] + references[:1])
        table.add_row("factuality: two ways against a reference", f"{rows / (time.perf_counter() - started):,.0f}")
    sample = texts["sample world, all sources"]
    pairs = list(itertools.islice(itertools.cycle(sample), rows))
    support = StatementSupport(LexicalChecker())
    started = time.perf_counter()
    support.share([sources[0] + " They serve live jazz and warm bread." for sources in pairs], pairs)
    words = sum(len(text.split()) for sources in sample for text in sources) / len(sample)
    rate = rows / (time.perf_counter() - started)
    table.add_row(f"grounding: {len(sample)} pairs in turn, {words:.0f} words of sources each", f"{rate:,.0f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1500, help="published rows, and rows of the speed measurement")
    parser.add_argument("--threshold", type=float, default=0.5)
    parser.add_argument("--nli", help="an entailment model, by name or folder, beside the offline checker")
    parser.add_argument("--device", default="cpu")
    given = parser.parse_args()
    sys.path.insert(0, str(ROOT))
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    from tests.planted_hallucinations import plant

    checkers: dict[str, SupportChecker] = {"lexical": LexicalChecker()}
    if given.nli:
        from xrec.evaluation.entailment import NliChecker

        checkers["nli"] = NliChecker(given.nli, given.device)
    texts = worlds(given.rows)
    found = Table(title=f"Statements called unsupported, at threshold {given.threshold}")
    for heading in ("world", "checker", "statements", "count", "unsupported", "AUC"):
        found.add_column(heading)
    for world, sources in texts.items():
        planted = plant(sources)
        for name, checker in checkers.items():
            add_rates(found, world, name, checker, planted, given.threshold)
    speed = Table(title="Offline checker, one process")
    for heading in ("scorer", "predictions a second"):
        speed.add_column(heading)
    throughput(speed, texts, given.rows)
    for table in (found, speed):
        Console(width=120).print(table)


if __name__ == "__main__":
    main()
