"""Texts written by vLLM inside the job, through `ray.data.llm`: blocks of requests go in, files of texts come out.

Every row carries its block and its number, so that Ray Data may cut, join and repeat its own blocks as it likes: a file
is written when all rows of its block are there, once. Answers that are of no use wait in `profile/work` and are asked
for again, once, in a second pass over all of them, for which the engines start anew. What is asked and how answers are
checked is `xrec.profiles`' business, and which engine runs that of `profile_engine.py`.
"""

import functools
import logging
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from typing import Any, Literal

from ray.data import DataContext
from ray.data.llm import build_processor
from ray.exceptions import RayError

from ray_jobs.block_pool import as_dataset
from ray_jobs.profile_engine import (
    engine_config,
    load_chat_tokenizer,
    sampling_parameters,
    start_error,
)
from xrec.blocks import part_name
from xrec.config import ProfileConfig, TextKind
from xrec.explainer.vllm_failures import root_cause
from xrec.profiles import parts
from xrec.profiles.answers import Answer, FatalError
from xrec.profiles.client import Completion
from xrec.profiles.parsing import AnswerError, Reason, parse_answer
from xrec.profiles.prompts import Prompts
from xrec.profiles.writer import corrected
from xrec.workspace import Workspace

# What failed in the engines' processes, wherever they run.
_FAILURES = "engine_failures"


@dataclass(frozen=True)
class Outcome:
    """What one pass made of a row: the answer if it stays at that, and what was said if it is to be asked again."""

    answer: Answer
    rejected: str | None = None
    reason: Reason | Literal[""] = ""


def write_blocks(
    workspace: Workspace, config: ProfileConfig, kind: TextKind, work: parts.Work
) -> Iterator[dict[str, Any]]:
    """Have the blocks written; yields what became of each as it ends.

    A run that is killed goes on with the blocks that have no file; rows whose first answer was rejected are not asked
    for the first time again.

    Yields:
        `parts.block_result`, of every block.

    Raises:
        FatalError: the model has no chat template or takes none of our messages, or the engine does not start.
    """
    load_chat_tokenizer(config)
    held = _held(workspace, kind, work)
    for block, results in _pass(workspace, config, kind, {b: r for b, r in work.items() if b not in held}, False):
        outcomes = {row: _outcome(config, kind, result, None) for row, result in results.items()}
        if any(outcome.rejected is not None for outcome in outcomes.values()):
            held[block] = work[block]
            content = {str(row): asdict(outcome) for row, outcome in outcomes.items()}
            workspace.write_json(content, parts.STAGE, parts.WORK, *_held_file(kind, block))
        else:
            yield _write(workspace, config, kind, block, work[block], outcomes)
    for block, results in _pass(workspace, config, kind, held, True):
        outcomes = read_held(workspace, kind, block)
        outcomes |= {row: _outcome(config, kind, result, outcomes[row]) for row, result in results.items()}
        yield _write(workspace, config, kind, block, work[block], outcomes)
        workspace.remove(parts.STAGE, parts.WORK, *_held_file(kind, block))


def _pass(
    workspace: Workspace, config: ProfileConfig, kind: TextKind, work: parts.Work, again: bool
) -> Iterator[tuple[int, dict[int, dict[str, Any]]]]:
    """Run the engines over the blocks; yields each block, with what came of its rows, when it is complete."""
    if not work:
        return
    failures = f"{workspace.uri}/{parts.STAGE}/{parts.WORK}/{_FAILURES}"
    workspace.remove(parts.STAGE, parts.WORK, _FAILURES)
    context = DataContext.get_current().copy()
    context.enable_progress_bars = False
    for name in ("ray.data", "ray.llm"):
        logging.getLogger(name).setLevel(logging.ERROR)
    with DataContext.current(context):
        blocks = as_dataset([{"block": block, "rows": rows} for block, rows in work.items()])
        requests = blocks.flat_map(
            functools.partial(_requests, workspace=workspace, config=config, kind=kind, again=again)
        )
        try:
            processor = build_processor(
                engine_config(config, len(work), failures),
                preprocess=functools.partial(_with_sampling, parameters=sampling_parameters(config, kind)),
                postprocess=_result,
            )
            yield from _complete(processor(requests).map(_plain).iter_rows())
        except (RayError, ValueError) as error:
            raise start_error(config, error, root_cause(failures, workspace.storage_options)) from error


def _complete(rows: Iterable[dict[str, Any]]) -> Iterator[tuple[int, dict[int, dict[str, Any]]]]:
    """Gather rows, which come in any order, into blocks."""
    waiting: dict[int, dict[int, dict[str, Any]]] = {}
    for row in rows:
        block = waiting.setdefault(row["block"], {})
        if row["row"] in block:
            raise FatalError(f"Ray Data returned row {row['row']} of block {row['block']} twice; run again")
        block[row["row"]] = row
        if len(block) == row["of"]:
            yield row["block"], waiting.pop(row["block"])
    for number, block in waiting.items():
        of = next(iter(block.values()))["of"]
        raise FatalError(f"Ray Data returned {len(block)} of {of} rows of block {number}; run again")


def _requests(
    item: dict[str, Any], workspace: Workspace, config: ProfileConfig, kind: TextKind, again: bool
) -> list[dict[str, Any]]:
    """The prompts of a block, as token ids."""
    block, prompts, tokenizer = item["block"], Prompts(config.prompts, config.max_words), load_chat_tokenizer(config)
    records = parts.read_block(workspace, kind, block)["record"].to_pylist()
    rows = range(len(records)) if item["rows"] is None else [int(row) for row in item["rows"]]
    held = read_held(workspace, kind, block) if again else {}
    if again:
        rows = [row for row in rows if held[row].rejected is not None]
    requests = []
    for row in rows:
        messages = prompts.messages(kind, records[row])
        if again and (reason := held[row].reason):
            messages = corrected(messages, held[row].rejected or "", reason, config.max_words)
        tokens = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
        requests.append({"block": block, "row": row, "of": len(rows), "tokenized_prompt": tokens})
    return requests


def _with_sampling(row: dict[str, Any], parameters: dict[str, Any]) -> dict[str, Any]:
    return {"sampling_params": parameters}


def _result(row: dict[str, Any]) -> dict[str, Any]:
    names = ("block", "row", "of", "generated_text", "num_input_tokens", "num_generated_tokens", "time_taken_llm")
    return {name: row[name] for name in names}


def _plain(row: dict[str, Any]) -> dict[str, Any]:
    """A row in one shape, whether the engine answered it or refused it (such a row skips `_result`)."""
    return {
        "block": row["block"],
        "row": row["row"],
        "of": row["of"],
        "text": row.get("generated_text") or "",
        "tokens_in": row.get("num_input_tokens") or 0,
        "tokens_out": row.get("num_generated_tokens") or 0,
        "seconds": max(0.0, row.get("time_taken_llm") or 0.0),
        "error": row.get("__inference_error__") or "",
    }


def _outcome(config: ProfileConfig, kind: TextKind, result: dict[str, Any], first: Outcome | None) -> Outcome:
    """Check what the engine said; `first` is what it had said the first time, which then adds up and is the last."""
    model, before = config.model or "", first.answer if first else Answer("", "", 0, 0, 0, 0.0, "failed", None)
    counts = (
        before.tokens_in + result["tokens_in"],
        before.tokens_out + result["tokens_out"],
        before.attempts + 1,
        before.latency + result["seconds"],
    )
    if result["error"]:
        return Outcome(Answer("", model, *counts, "failed", f"engine: {result['error']}"))
    finish = "length" if result["tokens_out"] >= config.max_tokens else "stop"
    said = Completion(result["text"], None, finish, model, result["tokens_in"], result["tokens_out"])
    try:
        return Outcome(Answer(parse_answer(kind, said, config.max_words), model, *counts, "ok", None))
    except AnswerError as error:
        failed = Answer("", model, *counts, "failed", f"{error.reason}: {error}")
        return Outcome(failed) if first else Outcome(failed, result["text"], error.reason)


def _write(
    workspace: Workspace,
    config: ProfileConfig,
    kind: TextKind,
    block: int,
    rows: list[int] | None,
    outcomes: dict[int, Outcome],
) -> dict[str, Any]:
    requests = parts.read_block(workspace, kind, block)
    answers = [outcomes[row].answer for row in (range(len(requests)) if rows is None else rows)]
    prompt_hash = Prompts(config.prompts, config.max_words).hash(kind)
    parts.write_part(workspace, kind, block, requests, answers, prompt_hash, config.price, rows)
    return parts.block_result(block, answers)


def _held_file(kind: TextKind, block: int) -> tuple[str, str]:
    return f"{kind}_first_answers", f"{part_name(block)}.json"


def _held(workspace: Workspace, kind: TextKind, work: parts.Work) -> parts.Work:
    """The blocks for whose rows an earlier run left first answers."""
    there, held = set(workspace.files(parts.STAGE, parts.WORK, f"{kind}_first_answers")), {}
    for block, rows in work.items():
        if _held_file(kind, block)[1] in there:
            wanted = range(len(parts.read_block(workspace, kind, block))) if rows is None else rows
            if sorted(read_held(workspace, kind, block)) == sorted(wanted):
                held[block] = rows
    return held


def read_held(workspace: Workspace, kind: TextKind, block: int) -> dict[int, Outcome]:
    """Row -> what the first pass made of it."""
    content = workspace.read_json(parts.STAGE, parts.WORK, *_held_file(kind, block))
    return {int(row): Outcome(**(fields | {"answer": Answer(**fields["answer"])})) for row, fields in content.items()}
