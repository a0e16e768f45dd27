"""The stage `baseline`: one of the other systems, trained, and its explanations of the pairs that XRec explains.

It writes two stage folders of a workspace of its own (a variant of the one that holds the data): `baseline/`, the
system, and `explain/`, its predictions, which are evaluated like XRec's. What the systems are is `xrec.baselines`'
business. One process on one device: they are small.
"""

import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

# pyright: reportAttributeAccessIssue=false
# (pyarrow.compute makes its functions at import, where pyright cannot see them)
import pyarrow as pa
import pyarrow.compute as pc
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from ray_jobs.devices import chosen_device, limited_threads
from xrec import tables
from xrec.baselines import item_profile, similar_user
from xrec.baselines.generation import generate
from xrec.baselines.preparation import prepare, rows_to_explain
from xrec.baselines.state import TrainingState
from xrec.baselines.systems import CONFIG, FLOORS, MODEL, TOKENIZER, WITH_RATINGS, load_system, save_system
from xrec.baselines.training import Trainer
from xrec.config import ExplainConfig
from xrec.config.baseline import BaselineConfig
from xrec.explainer.engine import limit_words
from xrec.explainer.loading import load_embeddings
from xrec.explainer.pairs import PairTexts, explained_pairs
from xrec.explainer.requests import check_complete, collect_requests, prediction_metrics
from xrec.fingerprint import hash_files, hash_of
from xrec.metric_logging import MetricLogger
from xrec.workspace import StageRun, Workspace

STAGE, EXPLAIN, TABLE = "baseline", "explain", "predictions"
_CHECKPOINT = ("checkpoints", "state.safetensors")
Rows = list[dict[str, Any]]


def run_beside(workspace: Workspace, config: BaselineConfig, *, force: bool = False, dry_run: bool = False) -> str:
    """The same in the system's own workspace inside a run's, `variants/<name>/<seed>/`; see `run`."""
    if not dry_run:
        workspace = workspace.variant(config.name, config.seed, ("baseline", "explain", "evaluate"))
    return run(workspace, config, force=force, dry_run=dry_run)


def run(workspace: Workspace, config: BaselineConfig, *, force: bool = False, dry_run: bool = False) -> str:
    """Train the system and write `baseline/`; explain the split's explained pairs and write `explain/predictions`.

    An interrupted run goes on from its last epoch and ends with the system it would have had.

    Args:
        workspace: the system's own, whose earlier stages are finished.
        config: the stage's settings.
        force: discard what is there and start anew.
        dry_run: say what would be done; write nothing.

    Returns:
        One line that says what was written where.

    Raises:
        WorkspaceError: an earlier stage is missing, or what is there was made from something else.
        ValueError: a setting does not fit the data, or PEPLER's model cannot be loaded.
    """
    target = workspace.path(EXPLAIN, TABLE)
    if dry_run:
        asked, train = _pairs(workspace, config), explained_pairs(workspace, "train")
        return (
            f"baseline: would have {config.name} read {len(train):,} training explanations and explain {len(asked):,} "
            f"pairs -> {target}"
        )
    with limited_threads(config.compute.threads):
        stage = workspace.stage(STAGE, config.training_identity(), _inputs(workspace, config), _model(config), force)
        if not stage.done:
            _train(stage, config)
        settings = {"system": config.name, "split": config.split, "limit": config.limit, "max_words": config.max_words}
        settings |= {"seed": config.seed} | ({"feature": config.feature} if config.name == "peter_plus" else {})
        written = workspace.stage(EXPLAIN, settings, [*_inputs(workspace, config), STAGE], force=force)
        if written.done:
            return f"baseline: {config.name} is already finished ({target})"
        metrics = _explain(written, config)
    return f"baseline: {config.name}, {metrics['rows']:,} explanations, {metrics['seconds']:.1f} s -> {target}"


def _inputs(workspace: Workspace, config: BaselineConfig) -> list[str]:
    """The stages that the system reads."""
    inputs = ["preprocess", *workspace.text_inputs()]
    if config.name in (*WITH_RATINGS, "item_profile") and workspace.is_finished("data"):
        inputs.append("data")
    return inputs + (["embed"] if config.name == "similar_user" else [])


def _model(config: BaselineConfig) -> dict[str, str]:
    """What identifies PEPLER's language model: a folder's contents; a name says enough by itself."""
    if config.name == "pepler" and config.model and Path(config.model).is_dir():
        return {"model": hash_files(config.model)}
    return {}


def _pairs(workspace: Workspace, config: BaselineConfig) -> pa.Table:
    """The pairs to be explained, the very ones that `xrec explain` chooses: user, item and, where told, the truth."""
    asked = collect_requests(workspace, ExplainConfig(split=config.split, limit=config.limit)).accepted
    pairs = asked.select(["user", "item"])
    if config.name == "peter_plus" and config.feature == "reference":
        told = explained_pairs(workspace, config.split)
        pairs = pairs.join(told, ["user", "item"], join_type="inner")
        return pairs.sort_by([("user", "ascending"), ("item", "ascending")])
    return pairs


# Training --------------------------------------------------------------------------------------------------------


def _train(stage: StageRun, config: BaselineConfig) -> None:
    """Train, and write the system; a floor has nothing but its settings."""
    workspace, started = stage.workspace, time.perf_counter()
    if config.name in FLOORS:
        stage.write_json(CONFIG, {"name": config.name})
        with MetricLogger(workspace, STAGE) as logger:
            logger.log(0, parameters=0)
        stage.finish({"parameters": 0, "seconds": time.perf_counter() - started})
        return
    prepared = prepare(workspace, config, chosen_device(config.compute.device, "baseline.compute.device"))
    trainer = Trainer(
        prepared.model, prepared.phases, prepared.tokenizer, config.batch_size, config.patience, config.seed
    )
    figures = _fit(workspace, trainer, config.name)
    with tempfile.TemporaryDirectory(prefix="xrec-baseline-") as folder:
        save_system(Path(folder), config.name, prepared.model, prepared.shape, prepared.tokenizer)
        for file in (MODEL, TOKENIZER, CONFIG):
            stage.upload(Path(folder) / file, file)
    workspace.remove(STAGE, _CHECKPOINT[0])
    last = f"{prepared.phases[-1].name}/val/loss"
    figures |= {"val/loss": figures[last]} if last in figures else {}
    figures |= {
        "parameters": sum(p.numel() for p in prepared.model.parameters()),
        "vocabulary": prepared.shape.vocabulary,
        "ratings": float(prepared.shape.ratings is not None),
        "told_the_feature": float(config.name == "peter_plus" and config.feature == "reference"),
        "seconds": time.perf_counter() - started,
    }
    stage.finish(figures)


def _fit(workspace: Workspace, trainer: Trainer, name: str) -> dict[str, float]:
    """Train to the end, from the last checkpoint where there is one."""
    resume = None
    if workspace.exists(STAGE, *_CHECKPOINT):
        resume = TrainingState.from_bytes(workspace.read_bytes(STAGE, *_CHECKPOINT))
    done, total = resume.step if resume else 0, sum(phase.epochs for phase in trainer.phases)
    with MetricLogger(workspace, STAGE, keep_below=done + 1) as logger, _progress(name, done, total) as show:

        def record(epoch: int, entry: dict[str, float]) -> None:
            logger.log(epoch, **entry)
            show(entry)

        def save(state: TrainingState) -> None:
            workspace.write_bytes(state.to_bytes(), STAGE, *_CHECKPOINT)

        return trainer.run(record, save, resume)


# Explanations ----------------------------------------------------------------------------------------------------


def _explain(stage: StageRun, config: BaselineConfig) -> dict[str, float]:
    """Write the predictions; returns their figures."""
    workspace, started = stage.workspace, time.perf_counter()
    pairs = _pairs(workspace, config)
    writers = {"item_profile": _from_profiles, "similar_user": _from_similar_users}
    rows, sources = writers.get(config.name, _generated)(workspace, config, pairs)
    seconds = time.perf_counter() - started
    common = {"signal": "true", "latency": seconds / len(rows), "status": "ok", "error": None}
    common["adapter_hash"] = hash_of(workspace.manifest(STAGE)["outputs"])
    ids = zip(pairs["user"].to_pylist(), pairs["item"].to_pylist(), strict=True)
    table = tables.from_rows(
        TABLE, [{"user": u, "item": i, **common, **row} for (u, i), row in zip(ids, rows, strict=True)]
    )
    check_complete(pairs.select(["user", "item"]).append_column("signal", pa.repeat("true", len(pairs))), table)
    stage.write_table(TABLE, table)
    metrics = prediction_metrics(table, config.max_words)
    metrics |= {"seconds": seconds, "rows_per_second": len(rows) / seconds}
    metrics |= {f"source/{name}": float(count) for name, count in Counter(sources).items()}
    if config.name == "peter_plus":
        metrics["told_the_feature"] = float(config.feature == "reference")
    with MetricLogger(workspace, EXPLAIN, keep_below=0) as logger:
        logger.log(len(rows), **metrics)
    stage.finish(metrics)
    return metrics


def _generated(workspace: Workspace, config: BaselineConfig, pairs: pa.Table) -> tuple[Rows, list[str]]:
    with tempfile.TemporaryDirectory(prefix="xrec-baseline-") as folder:
        for file in (MODEL, TOKENIZER, CONFIG):
            (Path(folder) / file).write_bytes(workspace.read_bytes(STAGE, file))
        model, tokenizer = load_system(Path(folder))
    model.to(chosen_device(config.compute.device, "baseline.compute.device"))
    asked, found = rows_to_explain(workspace, config, pairs, tokenizer), []
    with _progress(f"{config.name} explains", 0, len(asked)) as show:
        for results in generate(model, asked, tokenizer, config.max_words, config.compute.generation_batch):
            for result in results:
                found.append(
                    {
                        "explanation": result.text,
                        "finish_reason": result.finish_reason,
                        "tokens": len(result.token_ids),
                    }
                )
            show({}, len(results))
    return found, []


def _from_profiles(workspace: Workspace, config: BaselineConfig, pairs: pa.Table) -> tuple[Rows, list[str]]:
    facts = _item_facts(workspace)
    found = [item_profile.explain_item(item, facts) for item in pairs["item"].to_pylist()]
    return [_within(text, config.max_words) for text, _ in found], [source for _, source in found]


def _item_facts(workspace: Workspace) -> item_profile.ItemFacts:
    texts, first = PairTexts.load(workspace), {}
    train = explained_pairs(workspace, "train")
    for item, explanation in zip(train["item"].to_pylist(), train["explanation"].to_pylist(), strict=True):
        first.setdefault(item, explanation)
    facts = item_profile.ItemFacts(texts.titles, texts.item_profiles, {}, first)
    if workspace.has_table("data", "items"):
        source = workspace.read_table("data", "items")
        ids = workspace.read_table("preprocess", "items_index").sort_by("item")["item_id"]
        place = pc.index_in(ids, value_set=source["item_id"].combine_chunks())
        columns = (source[c].take(place).to_pylist() for c in ("attributes", "description"))
        for item, (attributes, description) in enumerate(zip(*columns, strict=True)):
            text = item_profile.details(attributes, description)
            if text:
                facts.details[item] = text
    return facts


def _from_similar_users(workspace: Workspace, config: BaselineConfig, pairs: pa.Table) -> tuple[Rows, list[str]]:
    embeddings, train = load_embeddings(workspace), explained_pairs(workspace, "train")
    explained, asked = ((t["user"].to_numpy().copy(), t["item"].to_numpy().copy()) for t in (train, pairs))
    chooser = similar_user.SimilarUser(embeddings.user_mean(), embeddings.item_mean(), *explained)
    chosen, sources = chooser.choose(*asked)
    texts = train["explanation"].take(pa.array(chosen)).to_pylist()
    return [_within(text, config.max_words) for text in texts], sources


def _within(text: str, max_words: int) -> dict[str, Any]:
    """The part of a text that fits, as the other systems' texts are cut; no model has made its tokens."""
    kept, reason = limit_words(text, max_words) or (text, "stop")
    return {"explanation": kept, "finish_reason": reason, "tokens": 0}


# -----------------------------------------------------------------------------------------------------------------


@contextmanager
def _progress(title: str, done: int, total: int) -> Iterator[Callable[..., None]]:
    columns = (TextColumn(title), BarColumn(), MofNCompleteColumn(), TextColumn("{task.description}"))
    console = Console(stderr=True)
    with Progress(*columns, TimeElapsedColumn(), console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task("", total=total, completed=done)

        def show(entry: dict[str, float], count: int = 1) -> None:
            shown = ", ".join(f"{k} {v:.4f}" for k, v in entry.items() if k.endswith(("train/text", "val/loss")))
            bar.update(task, advance=count, description=shown)

        yield show


if __name__ == "__main__":
    from ray_jobs.job import main

    main("baseline", run_beside)
