"""Texts written through OpenAI's Batch API: half the price, within a day. Runs in the driver, which only waits.

A killed run goes on with the batches that it submitted. What happens on the server is `xrec.profiles.batch_api`'s
business.
"""

import logging
from collections.abc import Callable, Iterator
from typing import Any

from pydantic import SecretStr

from xrec.config import ProfileConfig, TextKind
from xrec.fingerprint import hash_of
from xrec.profiles import parts
from xrec.profiles.accounting import Budget, cost_at_most, cost_of
from xrec.profiles.batch_api import BatchRun
from xrec.profiles.batch_rows import Account, Correspondent
from xrec.profiles.client import OpenAIClient
from xrec.profiles.prompts import Prompts
from xrec.workspace import Workspace

# Each further request of a row may take a day, so there are fewer than an endpoint that answers at once is sent.
_MOST_ATTEMPTS = 4

_log = logging.getLogger(__name__)


def write_blocks(
    workspace: Workspace,
    config: ProfileConfig,
    kind: TextKind,
    work: parts.Work,
    key: SecretStr | None,
    spent: float = 0.0,
    progress: Callable[[str], None] | None = None,
) -> Iterator[dict[str, Any]]:
    """Have the blocks written; yields what became of each as it is settled.

    Args:
        workspace: whose requests are written.
        config: the stage's settings.
        kind: which texts.
        work: block -> the rows of it to write anew; None: all.
        key: the endpoint's.
        spent: what earlier runs have spent, for the spend cap.
        progress: is told, in a sentence, what happens on the server; default: the log, at level INFO.

    Yields:
        `parts.block_result`, of every block.

    Raises:
        FatalError: the endpoint refuses what is sent, or stays out of reach; a rerun goes on where this run stopped.
    """
    secret = key.get_secret_value() if key is not None else "none"
    prompts = Prompts(config.prompts, config.max_words)
    client = OpenAIClient(
        config.model or "",
        config.compute.base_url,
        secret,
        config.temperature,
        config.max_tokens,
        config.structured_output,
        config.compute.request_timeout,
    )
    correspondent = Correspondent(
        kind, prompts, client, config.max_words, min(config.compute.max_attempts, _MOST_ATTEMPTS)
    )
    run = BatchRun(
        workspace,
        correspondent,
        secret,
        hash_of(config.identity() | {"prompt_hash": prompts.hash(kind)}),
        config.compute.poll_seconds,
        progress or _log.info,
    )
    left = dict(work)
    earlier = run.unfinished()
    for begun in ([earlier] if earlier else []) + [None]:
        # What an earlier run began is finished first, whatever is asked for now.
        chosen = begun if begun is not None else _affordable(workspace, config, kind, left, prompts, spent)
        if chosen:
            for block, accounts in run.write(chosen):
                spent += sum(cost_of(a.tokens_in, a.tokens_out, config.price) or 0.0 for a in accounts)
                if block in left and left[block] == chosen[block]:
                    yield _write(workspace, config, kind, block, left.pop(block), accounts, prompts)
    for block in left:
        yield parts.block_result(block, [], deferred=True)


def _affordable(
    workspace: Workspace, config: ProfileConfig, kind: TextKind, work: parts.Work, prompts: Prompts, spent: float
) -> parts.Work:
    """The blocks that may be begun within the spend cap."""
    if config.compute.spend_cap is None:
        return work
    budget, chosen = Budget(config.compute.spend_cap, spent), {}
    for block, rows in work.items():
        records = parts.read_block(workspace, kind, block)["record"].to_pylist()
        records = records if rows is None else [records[row] for row in rows]
        chats = (prompts.messages(kind, record) for record in records)
        if not budget.reserve(cost_at_most(chats, config.max_tokens, config.price)):
            break
        chosen[block] = rows
    return chosen


def _write(
    workspace: Workspace,
    config: ProfileConfig,
    kind: TextKind,
    block: int,
    rows: list[int] | None,
    accounts: list[Account],
    prompts: Prompts,
) -> dict[str, Any]:
    by_row = {account.row: account for account in accounts}
    requests = parts.read_block(workspace, kind, block)
    ordered = [by_row[row] for row in (range(len(requests)) if rows is None else rows)]
    answers = [account.answer(config.model or "") for account in ordered]
    parts.write_part(workspace, kind, block, requests, answers, prompts.hash(kind), config.price, rows)
    return parts.block_result(block, answers)
