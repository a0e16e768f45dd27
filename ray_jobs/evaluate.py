"""Stage `evaluate`: predictions in; `scores`, `summary.json`, `probe.json` and the figures out.

Composition only: the metrics are in `xrec/evaluation`, and the actors that compute those of single predictions in
`evaluate_actors.py`. What concerns the tuned model (likelihoods, probes) is left out for systems other than XRec.
"""

import sys
from dataclasses import asdict, dataclass

# pyright: reportAttributeAccessIssue=false
# (pyarrow.compute makes its functions at import, where pyright cannot see them)
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from rich.console import Console
from rich.progress import MofNCompleteColumn, Progress

from ray_jobs.devices import chosen_device
from ray_jobs.evaluate_actors import remove_work, score_predictions
from xrec.config import EvaluateConfig, ExplainCompute, ExplainConfig
from xrec.embeddings import Embeddings
from xrec.evaluation import scoring, summary
from xrec.evaluation.counterfactual import text_change
from xrec.evaluation.leakage import leakage
from xrec.evaluation.likelihood import Likelihood, reference_likelihood
from xrec.evaluation.probe import probe_words
from xrec.evaluation.prompt_texts import PromptTexts
from xrec.evaluation.scorer_choice import feature_matcher
from xrec.explainer.explain import Explainer
from xrec.tables import SIGNALS, SPLITS
from xrec.workspace import Workspace


@dataclass
class _Job:
    """What the parts of the stage share; `predicted` is what the predictions were made from (a fingerprint)."""

    workspace: Workspace
    config: EvaluateConfig
    predicted: dict
    progress: Progress
    device: str

    @property
    def tuned(self) -> bool:
        """Whether the predictions are those of this workspace's own tuned model."""
        return "tune" in self.predicted["inputs"]

    @property
    def split(self) -> str:
        """The predictions' split; `all` where they are from several."""
        return self.predicted["config"].get("split", "test")

    @property
    def likelihood_signals(self) -> list[str]:
        """The pair's own embeddings, shuffled ones, and what the predictions were made under besides."""
        asked = {"true", "shuffled", *self.predicted["config"].get("controls", ())}
        return [signal for signal in SIGNALS if signal in asked]

    def advance(self, description: str, total: int):
        """A progress bar; returns the function that moves it."""
        task = self.progress.add_task(description, total=total)

        def move(rows: int) -> None:
            self.progress.advance(task, rows)

        return move


def run(workspace: Workspace, config: EvaluateConfig, *, force: bool = False, dry_run: bool = False) -> str:
    """Evaluate the predictions of `explain`; returns the summary line.

    Raises:
        WorkspaceError: an earlier stage has not finished, or the folder holds another evaluation.
        ValueError: a model cannot be loaded, or nothing was predicted.
    """
    if dry_run:
        return f"evaluate: would score the predictions in {workspace}/explain and write to {workspace}/evaluate"
    stage = workspace.stage("evaluate", config.identity(), inputs=_inputs(workspace), force=force)
    if stage.done:
        return f"evaluate: already finished ({_headline(workspace.read_json('evaluate', 'metrics.json'))})"
    workspace.remove_unfinished("evaluate")
    workspace.remove("evaluate", "scores.parquet")  # of a run that was killed at its end
    device = chosen_device(config.compute.device, "evaluate.compute.device")
    joined = _joined(workspace)
    scores, scorers = score_predictions(workspace, config, joined, device)
    columns = *Progress.get_default_columns(), MofNCompleteColumn()
    with Progress(*columns, console=Console(stderr=True), disable=not sys.stderr.isatty()) as bars:
        job = _Job(workspace, config, workspace.manifest("explain")["fingerprint"], bars, device)
        scores, found = _evaluate(job, joined, scores)
        found["probe"] = _probe(job) if config.probe and job.tuned else None
    found["scorers"] = scorers
    stage.write_json("summary.json", found)
    if found["probe"]:
        stage.write_json("probe.json", found["probe"])
    remove_work(workspace)
    stage.write_table("scores", scores)
    figures = summary.flat_metrics(found)
    stage.finish(figures)
    return f"evaluate: {_headline(figures)} -> {workspace}/evaluate/summary.json"


def _joined(workspace: Workspace) -> pa.Table:
    predictions = workspace.read_table("explain", "predictions")
    joined = scoring.join_references(predictions, _explanations(workspace))
    if not len(joined):
        raise ValueError(
            f"{workspace}/explain: none of the {len(predictions)} predictions succeeded; read the column `error`, "
            "mend the cause, and repeat `xrec explain --force`"
        )
    return joined


def _evaluate(job: _Job, joined: pa.Table, scores: pa.Table) -> tuple[pa.Table, dict]:
    """What is known of all predictions together; `scores` with the likelihoods, and the summary."""
    matcher = feature_matcher(job.workspace)
    resamples, seed = job.config.bootstrap, job.config.seed
    found: dict = {
        "split": job.split,
        "counts": _counts(job.workspace.read_table("explain", "predictions"), joined),
        "resamples": resamples,
        "metrics": summary.metric_summary(scores, scoring.corpus_metrics(joined, matcher), resamples, seed),
        "counterfactual": text_change(joined, resamples, seed) or None,
        "leakage": _leakage(job),
        "feature": None,
        "likelihood": None,
    }
    if matcher is not None and joined["feature"].null_count < len(joined):
        found["feature"] = summary.feature_summary(joined, matcher.vocabulary, PromptTexts.load(job.workspace))
    pairs, likelihood = _likelihood(job) if job.config.likelihood and job.tuned else ([], None)
    if likelihood is not None:
        scores = scoring.add_likelihood(scores, pairs, likelihood)
        found["likelihood"] = summary.likelihood_summary(likelihood, resamples, seed)
    return scores, found


def _leakage(job: _Job) -> list[dict] | None:
    """What of the held-out pairs training has seen; None where the data has no explanations or several splits."""
    if _explanations(job.workspace) is None or job.split not in SPLITS:
        return None
    found = leakage(job.workspace, job.split)
    return [{"name": name, "of": found["pairs"], **leak} for name, leak in found["leaks"].items()]


def _likelihood(job: _Job) -> tuple[list[tuple[int, int]], Likelihood | None]:
    """Score the split's references, or some of them, under each signal of `likelihood_signals`."""
    explanations = _explanations(job.workspace)
    if explanations is None:
        return [], None
    wanted = pc.and_(pc.equal(explanations["split"], job.split), pc.equal(explanations["status"], "ok"))
    rows = explanations.filter(wanted).sort_by([("user", "ascending"), ("item", "ascending")])
    limit = job.config.likelihood_rows
    if limit is not None and limit < len(rows):
        chosen = np.random.default_rng(job.config.seed).choice(len(rows), limit, replace=False)
        rows = rows.take(pa.array(np.sort(chosen)))
    if not len(rows):
        return [], None
    pairs = list(zip(rows["user"].to_pylist(), rows["item"].to_pylist(), strict=True))
    known = {name: v for name, v in job.predicted["config"].items() if name in ExplainConfig.model_fields}
    # One process and long batches of given texts: no work for vLLM, whichever engine wrote the predictions.
    compute = ExplainCompute(batch_size=job.config.batch_size)
    settings = ExplainConfig.model_validate(known | {"engine": "hf", "compute": compute})
    explainer = Explainer.from_workspace(job.workspace, settings, device=job.device)
    signals = job.likelihood_signals
    move = job.advance("likelihood", len(rows) * len(signals))
    return pairs, reference_likelihood(
        explainer, pairs, rows["explanation"].to_pylist(), signals, batch_size=8 * job.config.batch_size, progress=move
    )


def _probe(job: _Job) -> dict[str, list[dict]]:
    """Linear probes of both sides' embeddings for the words of the trained nodes' texts."""
    with job.workspace.local("embed", "embeddings.safetensors") as path:
        embeddings = Embeddings.load(path)
    interactions = job.workspace.read_table("preprocess", "interactions")
    trained = interactions.filter(pc.equal(interactions["split"], "train"))
    vectors = {"item": embeddings.item_mean(), "user": embeddings.user_mean()}
    move = job.advance("probes", len(vectors))
    found = {}
    for side, nodes in vectors.items():
        known = set(pc.unique(trained[side]).to_pylist())
        texts = {node: text for node, text in _texts(job.workspace, side).items() if node in known}
        probes = probe_words(nodes.numpy(), texts, job.config.probe_words, seed=job.config.seed)
        found[side] = [asdict(probe) for probe in probes]
        move(1)
    return found


def _texts(workspace: Workspace, side: str) -> dict[int, str]:
    """Node -> its profile, for items behind the title; titles alone where the data has no item profiles."""
    titles = {}
    if side == "item":
        index = workspace.read_table("preprocess", "items_index")
        titles = dict(zip(index["item"].to_pylist(), index["title"].to_pylist(), strict=True))
    table = f"{side}_profiles"
    if not workspace.has_table(workspace.text_stage(table), table):
        return titles
    rows = workspace.read_text_table(table)
    rows = rows.filter(pc.equal(rows["status"], "ok"))
    profiles = zip(rows[side].to_pylist(), rows["profile"].to_pylist(), strict=True)
    return {node: f"{titles.get(node, '')} {profile}" for node, profile in profiles}


def _explanations(workspace: Workspace) -> pa.Table | None:
    if not workspace.has_table(workspace.text_stage("explanations"), "explanations"):
        return None
    return workspace.read_text_table("explanations")


def _counts(predictions: pa.Table, joined: pa.Table) -> dict[str, dict[str, int]]:
    """By signal: predictions that succeeded, that failed, that are empty, and that have no reference."""
    counts = {}
    for signal in pc.unique(predictions["signal"]).to_pylist():
        ok = joined.filter(pc.equal(joined["signal"], signal))
        total = pc.sum(pc.equal(predictions["signal"], signal)).as_py()
        empty = pc.sum(pc.equal(pc.utf8_length(pc.utf8_trim_whitespace(ok["explanation"])), 0)).as_py() or 0
        counts[signal] = {
            "ok": len(ok),
            "failed": total - len(ok),
            "empty": empty,
            "without_reference": ok["reference"].null_count,
        }
    return counts


def _inputs(workspace: Workspace) -> list[str]:
    """The stages that the evaluation rests on: those that the predictions followed from, and the texts."""
    earlier = workspace.manifest("explain")["fingerprint"]["inputs"]
    stages = {name for name in earlier if workspace.is_finished(name)}
    return sorted({"preprocess", "explain", *stages, *workspace.text_inputs()})


def _headline(figures: dict[str, float]) -> str:
    """The main figures in words, whatever the split."""
    named = {name.partition("/")[2]: value for name, value in figures.items()}
    parts = [f"{int(named.get('predictions', 0)):,} predictions"]
    if named.get("failed"):
        parts.append(f"{int(named['failed']):,} failed")
    if "feature/accuracy" in named:
        chance = f"chance {named['feature/chance']:.1%}"
        if "feature/prompt_chance" in named:
            chance += f", {named['feature/prompt_chance']:.1%} from the prompt's texts"
        parts.append(f"feature accuracy {named['feature/accuracy']:.1%} ({chance})")
    if "bert_score_f1" in named:
        parts.append(f"BERTScore F1 {named['bert_score_f1']:.3f}")
    if "prompt_copy" in named:
        parts.append(f"copies of the prompt {named['prompt_copy']:.1%}")
    if "nll_difference" in named:
        low, high = named["nll_difference/low"], named["nll_difference/high"]
        parts.append(f"shuffling costs {named['nll_difference']:.4f} nats per token [{low:.4f}, {high:.4f}]")
    return ", ".join(parts)


if __name__ == "__main__":
    from ray_jobs.job import main

    main("evaluate", run)
