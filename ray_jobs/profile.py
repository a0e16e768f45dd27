"""Stage `profile`: item profiles, user profiles and ground-truth explanations, written from the workspace's reviews.

In this order, since users' prompts quote the profiles of their items. Each kind's requests are cut into blocks, and a
block's result is one file: a killed run goes on with the blocks that have none. A row that could not be written is in
the table, with status and error; `repair` asks for those alone again. What is asked and how answers are checked is
`xrec.profiles`' business, who does the blocks that of the backends' modules (`profile_actors`, `profile_vllm`,
`profile_batch_api`).
"""

import time
from collections.abc import Iterable, Iterator
from contextlib import nullcontext
from typing import Any

import pyarrow as pa
from pydantic import SecretStr

from ray_jobs.profile_progress import ProfileProgress
from ray_jobs.resources import require, section_demands, waiting
from xrec.config import TEXT_KINDS, ConfigError, ProfileConfig, TextKind
from xrec.data.preprocess import leak_metrics
from xrec.profiles import parts
from xrec.profiles.accounting import Estimate, TokenCounter, estimate, failure_reasons, spent, text_metrics
from xrec.profiles.answers import FatalError
from xrec.profiles.prompts import Prompts
from xrec.profiles.records import check_sources, count_records, record_batches
from xrec.workspace import StageRun, Workspace, WorkspaceError

STAGE = parts.STAGE
# Records that a tokenizer reads in a dry run.
_SAMPLE = 500


def run(
    workspace: Workspace,
    config: ProfileConfig,
    *,
    force: bool = False,
    dry_run: bool = False,
    repair: bool = False,
) -> str:
    """Write the texts; returns the summary line.

    Args:
        repair: write the rows that failed again, and nothing else; also opens a finished stage again.

    Raises:
        ConfigError, ValueError: a setting is wrong, the endpoint's key is not in the environment, or the cluster can
            never hold the actors or engines.
        WorkspaceError: an earlier stage is missing, the reviews carry no text, the folder holds the result of other
            settings, the spend cap is reached, no further call can succeed, or all rows of a kind failed.
    """
    check_sources(workspace)
    if dry_run:
        return _dry_run(workspace, config)
    key = _key(config)
    stage = workspace.stage(STAGE, _identity(config), inputs=["data", "preprocess"], force=force, reopen=repair)
    if stage.done:
        return f"profile: already finished ({workspace}/profile)"
    workspace.remove_unfinished(STAGE)
    started = time.perf_counter()
    needed = section_demands(STAGE, config)
    if needed:
        require(needed)
    prepared = {}
    for kind in TEXT_KINDS:
        prepared[kind] = parts.write_requests(workspace, kind, _blocks(workspace, config, kind))
        with waiting(needed) if needed else nullcontext():
            _write_kind(workspace, config, kind, _work(workspace, kind, prepared[kind], repair), key)
    metrics = _finish(stage, prepared, time.perf_counter() - started)
    return _summary(metrics, workspace)


def _identity(config: ProfileConfig) -> dict[str, Any]:
    """What determines the texts: the settings, and the prompts (or the extractive writer) of this version of XRec."""
    if config.backend == "extractive":
        from xrec.profiles.extractive import ExtractiveWriter

        return config.identity() | {"writer": ExtractiveWriter(config.max_words).model}
    prompts = Prompts(config.prompts, config.max_words)
    return config.identity() | {"prompt_hash": {kind: prompts.hash(kind) for kind in TEXT_KINDS}}


def _key(config: ProfileConfig) -> SecretStr | None:
    if config.backend not in ("openai", "batch"):
        return None
    from xrec.profiles.client import OpenAIClient

    try:
        return SecretStr(OpenAIClient.api_key_from(config.compute.api_key_variable, config.compute.base_url))
    except FatalError as error:
        raise ConfigError(f"profile: {error}") from error


def _blocks(workspace: Workspace, config: ProfileConfig, kind: TextKind) -> Iterator[pa.Table]:
    return record_batches(workspace, config, kind, config.compute.rows_per_block)


def _work(workspace: Workspace, kind: TextKind, index: parts.RequestIndex, repair: bool) -> parts.Work:
    """The blocks to do: those without a result and, to repair, the failed rows of the others."""
    done = parts.done_blocks(workspace, kind)
    work: parts.Work = {block: None for block in range(index.blocks) if block not in done}
    return work | (parts.failed_rows(workspace, kind) if repair else {})


def _write_kind(
    workspace: Workspace, config: ProfileConfig, kind: TextKind, work: parts.Work, key: SecretStr | None
) -> None:
    """Do the blocks of one kind of text."""
    if not work:
        return
    before = spent(_texts(workspace, TEXT_KINDS)) if config.compute.spend_cap else 0.0
    deferred = 0
    with ProfileProgress(workspace, config, kind, len(work), before) as progress:
        try:
            for result in _results(workspace, config, kind, work, key, progress):
                deferred += result["deferred"]
                if not result["deferred"]:
                    progress.add(result)
        except FatalError as error:
            raise WorkspaceError(f"profile: {error}. What is written is kept") from error
    if deferred:
        raise WorkspaceError(
            f"profile: stopped at profile.compute.spend_cap = {config.compute.spend_cap:g}: {progress.cost:.4g} is "
            f"spent and no further block of {parts.TABLE[kind]} fits; {deferred:,} are left. Raise the cap and run the "
            "same command again, nothing is asked for twice"
        )


def _results(
    workspace: Workspace,
    config: ProfileConfig,
    kind: TextKind,
    work: parts.Work,
    key: SecretStr | None,
    progress: ProfileProgress,
) -> Iterable[dict[str, Any]]:
    """Have a backend do the blocks; yields what became of each (see `profile_actors.write_blocks`)."""
    if config.backend == "batch":
        from ray_jobs.profile_batch_api import write_blocks as on_batch_api

        return on_batch_api(workspace, config, kind, work, key, progress.cost, progress.say)
    if config.backend == "vllm":
        from ray_jobs.profile_vllm import write_blocks as on_vllm

        return on_vllm(workspace, config, kind, work)
    from ray_jobs.profile_actors import write_blocks as on_actors

    return on_actors(workspace, config, kind, work, key, progress.cost)


def _texts(workspace: Workspace, kinds: Iterable[TextKind]) -> Iterator[pa.Table]:
    for kind in kinds:
        if workspace.has_table(STAGE, parts.TABLE[kind]):
            yield workspace.read_table(STAGE, parts.TABLE[kind])


def _finish(stage: StageRun, prepared: dict[TextKind, parts.RequestIndex], seconds: float) -> dict[str, float]:
    workspace, metrics = stage.workspace, {"seconds": seconds}
    for kind, index in prepared.items():
        if index.rows == 0:
            continue
        table = workspace.read_table(STAGE, parts.TABLE[kind])
        parts.check_complete(workspace, kind, index, table)
        metrics |= text_metrics(table, parts.TABLE[kind])
        if kind == "explanation":
            metrics |= leak_metrics(workspace.read_table("preprocess", "interactions"), table)
        reasons = failure_reasons(table)
        metrics |= {f"{parts.TABLE[kind]}/failed/{reason}": count for reason, count in reasons.items()}
        if metrics[f"{parts.TABLE[kind]}/failed"] == len(table):
            raise WorkspaceError(
                f"profile: all {len(table):,} {parts.TABLE[kind]} failed; the first: {table['error'][0]}. Mend the "
                "cause and run `xrec profile --repair`"
            )
    stage.finish(metrics, exclude=(f"{parts.WORK}/",))
    return metrics


def _summary(metrics: dict[str, float], workspace: Workspace) -> str:
    counted = []
    for table in parts.TABLE.values():
        if f"{table}/rows" in metrics:
            rows, failed = int(metrics[f"{table}/rows"]), int(metrics[f"{table}/failed"])
            counted.append(f"{rows:,} {table.replace('_', ' ')}" + (f" ({failed:,} failed)" if failed else ""))
    total = {
        figure: sum(metrics.get(f"{table}/{figure}", 0) for table in parts.TABLE.values())
        for figure in ("tokens_in", "tokens_out", "cost", "failed")
    }
    tokens = f", {total['tokens_in']:,.0f} + {total['tokens_out']:,.0f} tokens" if total["tokens_in"] else ""
    cost = f", cost {total['cost']:,.4g}" if total["cost"] else ""
    repair = "; `xrec profile --repair` asks for the failed rows again" if total["failed"] else ""
    return f"profile: {', '.join(counted)}{tokens}{cost} -> {workspace}/profile{repair}"


def _dry_run(workspace: Workspace, config: ProfileConfig) -> str:
    """Rows, tokens and cost of what is still to be written, counted without sending anything."""
    price = config.price
    first = next(record_batches(workspace, config, "explanation", _SAMPLE), None)
    counter = TokenCounter(config.tokenizer, first["record"].to_pylist() if first is not None else [])
    prompts = Prompts(config.prompts, config.max_words)
    total, lines = Estimate(0, 0, 0, 0.0 if price else None), []
    for kind, counts in count_records(workspace, config).items():
        overhead = counter.of_messages(prompts.messages(kind, "{}"))
        tokens = counts.rows * overhead + counter.of_characters(counts.characters)
        part = estimate(counts.rows, tokens, config.max_tokens, price)
        total += part
        lines.append(f"{part.rows:,} {parts.TABLE[kind].replace('_', ' ')}")
    if config.backend == "extractive":
        return f"profile: would write {', '.join(lines)} without a language model to {workspace}/profile"
    money = (
        f", cost at most {total.cost:,.4g}"
        if total.cost is not None
        else f", cost unknown (profile.compute.prices has none for {config.model!r})"
    )
    done = sum(len(parts.done_blocks(workspace, kind)) for kind in TEXT_KINDS)
    return (
        f"profile: would write {', '.join(lines)} with {config.model}: {total.rows:,} requests, about "
        f"{total.tokens_in:,} tokens in ({counter.how}) and at most {total.tokens_out:,} out{money} "
        f"-> {workspace}/profile" + (f"; {done:,} blocks of it are written" if done else "")
    )


if __name__ == "__main__":
    from ray_jobs.job import main

    main("profile", run, flags={"repair": "write the rows that failed again, and nothing else"})
