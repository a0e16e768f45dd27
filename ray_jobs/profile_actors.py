"""Texts written by Ray Data actors: each has one writer (an endpoint's client, or the extractive one), blocks go in.

An actor works on several blocks at once, so that a slow row holds up nothing but its own block. The actors share one
rate limit and one budget, which live in an actor of their own. What a writer does is `xrec.profiles`' business.
"""

import json
import math
from collections.abc import Iterator
from contextlib import closing
from typing import Any

import ray
from pydantic import SecretStr
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from ray_jobs.block_pool import run_blocks
from ray_jobs.resources import actor_options, section_demands
from ray_jobs.shared_limits import RemoteLimits, SharedLimits
from xrec.config import ProfileConfig, TextKind
from xrec.profiles import parts
from xrec.profiles.accounting import Budget, cost_at_most, cost_of
from xrec.profiles.answers import Answer, FatalError, Writer
from xrec.profiles.prompts import Prompts
from xrec.profiles.rate_limit import CallLimits
from xrec.workspace import Workspace

_MOST_WAITING = 100_000


class WritingActor:
    """A writer as Ray Data's actors run it: blocks of requests in, files of texts out.

    Args:
        workspace: whose requests are written.
        config: the stage's settings.
        kind: which texts.
        key: the endpoint's key; None for the extractive writer.
        shared: the `SharedLimits` of all actors; None where nothing is limited.
    """

    def __init__(self, workspace: Workspace, config: ProfileConfig, kind: TextKind, key: SecretStr | None, shared: Any):
        self.workspace, self.config, self.shared = workspace, config, shared
        self.kind: TextKind = kind
        self.prompts = Prompts(config.prompts, config.max_words)
        self.price = config.price
        # The extractive writer is given no prompt.
        self.prompt_hash = "" if config.backend == "extractive" else self.prompts.hash(kind)
        self.writer = make_writer(config, self.prompts, key, RemoteLimits(shared) if shared is not None else None)

    async def __call__(self, batch: dict[str, Any]) -> dict[str, list]:
        """Write one block; returns what became of it, as a row of lists of one."""
        block, rows = int(batch["block"][0]), json.loads(str(batch["rows"][0]))
        requests = parts.read_block(self.workspace, self.kind, block)
        chosen = requests if rows is None else requests.take(rows)
        records = chosen["record"].to_pylist()
        reserved = self._cost_at_most(records)
        if reserved and not await self.shared.reserve_cost.remote(reserved, self.config.compute.deadline):
            return _column(parts.block_result(block, [], deferred=True))
        answers: list[Answer] = []
        fatal = ""
        try:
            answers = await self.writer.write(self.kind, records)
            parts.write_part(self.workspace, self.kind, block, requests, answers, self.prompt_hash, self.price, rows)
        except FatalError as error:
            fatal = str(error)
        finally:
            if reserved:
                await self.shared.settle_cost.remote(reserved, sum(self._cost(answer) for answer in answers))
        return _column(parts.block_result(block, answers), fatal)

    def _cost(self, answer: Answer) -> float:
        return cost_of(answer.tokens_in, answer.tokens_out, self.price) or 0.0

    def _cost_at_most(self, records: list[str]) -> float:
        """0 where there is no cap to hold it against."""
        if self.config.compute.spend_cap is None:
            return 0.0
        chats = (self.prompts.messages(self.kind, record) for record in records)
        return cost_at_most(chats, self.config.max_tokens, self.price)


def _column(result: dict[str, Any], fatal: str = "") -> dict[str, list]:
    return {name: [value] for name, value in (result | {"fatal": fatal}).items()}


def make_writer(config: ProfileConfig, prompts: Prompts, key: SecretStr | None, limits: CallLimits | None) -> Writer:
    """The writer that the settings ask for: extractive, or a chat endpoint's."""
    if config.backend == "extractive":
        from xrec.profiles.extractive import ExtractiveWriter

        return ExtractiveWriter(config.max_words)
    from xrec.profiles.client import OpenAIClient
    from xrec.profiles.writer import ChatWriter

    compute = config.compute
    client = OpenAIClient(
        model=config.model or "",
        base_url=compute.base_url,
        api_key=key.get_secret_value() if key is not None else "none",
        temperature=config.temperature,
        max_tokens=config.max_tokens,
        structured_output=config.structured_output,
        request_timeout=compute.request_timeout,
        concurrency=compute.concurrency,
    )
    return ChatWriter(
        client,
        prompts,
        max_words=config.max_words,
        concurrency=compute.concurrency,
        deadline=compute.deadline,
        max_attempts=compute.max_attempts,
        limits=limits,
    )


def write_blocks(
    workspace: Workspace, config: ProfileConfig, kind: TextKind, work: parts.Work, key: SecretStr | None, spent: float
) -> Iterator[dict[str, Any]]:
    """Have the blocks written; yields what became of each as it ends.

    Yields:
        `parts.block_result`, of every block.

    Raises:
        FatalError: no further call can succeed.
    """
    compute = config.compute
    shared = None
    if config.backend != "extractive" and (
        compute.requests_per_minute or compute.tokens_per_minute or compute.spend_cap
    ):
        # Never restarted: it would have forgotten what is spent. It stays by the driver, whose node has to last anyway.
        beside = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        limits: Any = ray.remote(SharedLimits)
        shared = limits.options(num_cpus=0, max_concurrency=_MOST_WAITING, scheduling_strategy=beside).remote(
            compute.requests_per_minute, compute.tokens_per_minute, Budget(compute.spend_cap, spent)
        )
    results = run_blocks(
        WritingActor,
        (workspace, config, kind, key, shared),
        [{"block": block, "rows": json.dumps(chosen)} for block, chosen in work.items()],
        (compute.actors[0], max(compute.actors[0], min(compute.actors[1], len(work)))),
        blocks_at_once(config),
        **actor_options(section_demands("profile", config)[0].bundles[0]),
    )
    with closing(results):
        for result in results:
            if result["fatal"]:
                raise FatalError(result["fatal"])
            yield result


def blocks_at_once(config: ProfileConfig) -> int:
    """Blocks that an actor works on together: enough to keep its requests open while the last rows of one end.

    With `rows_per_block` it bounds what a kill makes an actor write again.
    """
    if config.backend == "extractive":
        return 1
    return math.ceil(config.compute.concurrency / config.compute.rows_per_block) + 1
