"""OpenAI's Batch API, in rounds: upload the requests, submit, poll, download, reconcile, and ask again what is open.

Everything that a killed run needs to go on is in `profile/work/<kind>_batches/`: what the run is about, the batches of
each round, and the accounts of each batch's rows. A batch is submitted once: it carries the run's name and its own, so
a run that was killed between submitting and noting it down finds the batch in the server's list. A killed run's batches
go on there, and nobody but the user cancels them, with the provider's own tools.

What a request and an answer are is `batch_rows.py`'s business, the server `batch_server.py`'s, and who writes the files
of texts the caller's.
"""

import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from openai.types import Batch

from xrec.config import TextKind
from xrec.profiles import parts
from xrec.profiles.answers import FatalError
from xrec.profiles.batch_rows import (
    MOST_BYTES,
    MOST_REQUESTS,
    Account,
    Answers,
    Correspondent,
    chunks,
    from_table,
    to_table,
)
from xrec.profiles.batch_server import ENDED, BatchServer
from xrec.workspace import Workspace


class BatchRun:
    """The batches of one kind of text in one workspace.

    Args:
        workspace: whose requests are asked.
        correspondent: writes requests and reads answers.
        api_key: of the endpoint.
        fingerprint: of the stage; goes into the batches' metadata.
        poll_seconds: between two questions whether a batch has ended.
        progress: is told, in a sentence, what happens on the server.
        most_requests, most_bytes: of an input file.
    """

    def __init__(
        self,
        workspace: Workspace,
        correspondent: Correspondent,
        api_key: str,
        fingerprint: str = "",
        poll_seconds: float = 30.0,
        progress: Callable[[str], None] | None = None,
        most_requests: int = MOST_REQUESTS,
        most_bytes: int = MOST_BYTES,
    ):
        self.workspace, self.rows = workspace, correspondent
        self.kind: TextKind = correspondent.kind
        self.fingerprint, self.poll_seconds, self.progress = fingerprint, poll_seconds, progress
        self.limits = (most_requests, most_bytes)
        self.client = correspondent.client
        self.server = BatchServer(self.client, api_key)
        self.folder = (parts.STAGE, parts.WORK, f"{self.kind}_batches")

    def unfinished(self) -> parts.Work | None:
        """What an earlier run was about that has not ended; None: there is none."""
        if not self.workspace.exists(*self.folder, "run.json"):
            return None
        return {int(block): rows for block, rows in self.workspace.read_json(*self.folder, "run.json")["work"].items()}

    def write(self, work: parts.Work) -> Iterator[tuple[int, list[Account]]]:
        """Have the rows written, or go on with the run that has begun; yields each block with its settled accounts.

        Args:
            work: block -> rows of it, None: all. A run that has begun goes on with what it began with.

        Raises:
            FatalError: the endpoint refuses the key, the file, or every request; a batch was cancelled; or the
                endpoint stays out of reach. Nothing that was answered is lost: a rerun goes on.
        """
        work = self._begin(work)
        number, before = 1, list(work)
        while before:
            plan = self._plan(number, before, work)
            yield from self._settled(plan, number)
            self._submit(plan, number, work)
            yield from self._collect_all(plan, number, work)
            before = [
                block
                for chunk in range(len(plan["chunks"]))
                for block, accounts in _by_block(self._accounts(number, chunk)).items()
                if not all(account.settled for account in accounts)
            ]
            number += 1
        self.workspace.remove(*self.folder)

    # Plans ---------------------------------------------------------------------------------------------------------

    def _begin(self, work: parts.Work) -> parts.Work:
        earlier = self.unfinished()
        if earlier is not None:
            return earlier
        self.workspace.remove(*self.folder)
        run = {"run": uuid.uuid4().hex, "fingerprint": self.fingerprint, "work": work}
        self.workspace.write_json(run, *self.folder, "run.json")
        return work

    def _plan(self, number: int, blocks: list[int], work: parts.Work) -> dict[str, Any]:
        """Which blocks go into which file of a round, and the batches submitted for them so far."""
        if self.workspace.exists(*self.folder, f"round-{number}.json"):
            return self.workspace.read_json(*self.folder, f"round-{number}.json")
        before = self._before(number, blocks, work)
        sizes = ((block, *_sizes(self._lines(block, accounts))) for block, accounts in before)
        try:
            cut = list(chunks(sizes, *self.limits))
        except ValueError as error:
            raise FatalError(str(error)) from error
        plan = {"chunks": [{"blocks": blocks, "batch": None, "void": []} for blocks in cut]}
        self._save(plan, number)
        return plan

    def _save(self, plan: dict[str, Any], number: int) -> None:
        self.workspace.write_json(plan, *self.folder, f"round-{number}.json")

    def _before(self, number: int, blocks: list[int], work: parts.Work) -> Iterator[tuple[int, list[Account]]]:
        """The accounts of blocks as a round finds them."""
        if number == 1:
            for block in blocks:
                rows = work[block]
                count = len(parts.read_block(self.workspace, self.kind, block)) if rows is None else 0
                yield block, [Account(block, row) for row in (range(count) if rows is None else rows)]
            return
        wanted = set(blocks)
        for chunk in range(len(self._plan(number - 1, [], work)["chunks"])):
            for block, accounts in _by_block(self._accounts(number - 1, chunk)).items():
                if block in wanted:
                    yield block, accounts

    def _lines(self, block: int, accounts: list[Account]) -> Iterator[bytes]:
        records = parts.read_block(self.workspace, self.kind, block)["record"].to_pylist()
        for account in accounts:
            if not account.settled:
                yield self.rows.line(account, records[account.row])

    def _accounts(self, number: int, chunk: int) -> list[Account]:
        content = self.workspace.read_bytes(*self.folder, _accounts_file(number, chunk))
        return from_table(pq.read_table(pa.BufferReader(content)))

    # Submitting ----------------------------------------------------------------------------------------------------

    def _submit(self, plan: dict[str, Any], number: int, work: parts.Work) -> None:
        """Create the batches of a round that the server does not have yet."""
        if all(chunk["batch"] for chunk in plan["chunks"]):
            return
        run = self.workspace.read_json(*self.folder, "run.json")["run"]
        there = self.server.submitted(run)
        for position, chunk in enumerate(plan["chunks"]):
            if chunk["batch"]:
                continue
            name = f"{self.kind}/{number}/{position}"
            found = [batch for batch in there.get(name, []) if batch not in chunk["void"]]
            chunk["batch"] = found[0] if found else self._create(run, name, number, chunk["blocks"], work)
            self._save(plan, number)
            self._tell(f"batch {chunk['batch']} of {len(chunk['blocks']):,} blocks is submitted")

    def _create(self, run: str, name: str, number: int, blocks: list[int], work: parts.Work) -> str:
        with tempfile.TemporaryFile(prefix="xrec-") as file:
            for block, accounts in self._before(number, blocks, work):
                file.writelines(self._lines(block, accounts))
            file.seek(0)
            return self.server.create(file, run, name, self.fingerprint)

    # Collecting ----------------------------------------------------------------------------------------------------

    def _collect_all(self, plan: dict[str, Any], number: int, work: parts.Work) -> Iterator[tuple[int, list[Account]]]:
        """Poll until every batch of the round has ended; yields blocks as they are settled."""
        waiting = [p for p in range(len(plan["chunks"])) if not self._collected(number, p)]
        while waiting:
            counts = {"total": 0, "completed": 0, "failed": 0}
            for position in list(waiting):
                batch = self.server.poll(plan["chunks"][position]["batch"])
                if isinstance(batch, str):
                    self._tell(f"asking how a batch is failed ({batch}); trying again")
                    continue
                if batch.request_counts:
                    counts = {name: n + getattr(batch.request_counts, name) for name, n in counts.items()}
                if batch.status in ENDED:
                    yield from self._end(plan, number, position, batch, work)
                    waiting.remove(position)
            if waiting:
                self._tell("{completed:,} of {total:,} requests answered, {failed:,} in error".format(**counts))
                time.sleep(self.poll_seconds)

    def _end(
        self, plan: dict[str, Any], number: int, position: int, batch: Batch, work: parts.Work
    ) -> Iterator[tuple[int, list[Account]]]:
        """Take over what an ended batch brought."""
        chunk = plan["chunks"][position]
        if batch.status == "failed":
            self._void(plan, number, chunk)
            said = [e for e in (batch.errors.data or []) if e.message] if batch.errors else []
            lines = "; ".join(f"line {e.line}: {e.message}" if e.line else str(e.message) for e in said[:3])
            raise FatalError(
                f"{self.client.base_url} refused batch {batch.id}: {self.client.redact(lines) or 'it gave no reason'}; "
                "mend that and run again, no other batch is submitted twice"
            )
        before = list(self._before(number, chunk["blocks"], work))
        known = {self.rows.request_id(a) for _, accounts in before for a in accounts if not a.settled}
        answers = self.server.download(batch, known)
        after, refused = self._settle(before, answers, batch)
        if number == 1 and refused and len(refused) == len(known):
            self._void(plan, number, chunk)
            first = refused[0]
            remedy = first.remedy or f"check what the settings ask of model {self.client.model!r}"
            raise FatalError(f"{self.client.base_url} refused every request of batch {batch.id} ({first}); {remedy}")
        sink = pa.BufferOutputStream()
        pq.write_table(to_table(after), sink, compression="zstd")
        self.workspace.write_bytes(sink.getvalue().to_pybytes(), *self.folder, _accounts_file(number, position))
        open_rows = sum(not account.settled for account in after)
        self._tell(
            f"batch {batch.id} {batch.status}: {len(answers.by_id):,} of {len(known):,} requests answered, "
            f"{open_rows:,} to be asked again; lines ignored: {answers.unknown:,} of unknown requests, "
            f"{answers.repeated:,} repeated, {answers.unreadable:,} unreadable"
        )
        yield from _settled_blocks(after)
        if batch.status == "cancelled" and open_rows:
            raise FatalError(
                f"batch {batch.id} was cancelled; run again to ask for the {open_rows:,} rows that it did not answer"
            )

    def _settle(
        self, before: list[tuple[int, list[Account]]], answers: Answers, batch: Batch
    ) -> tuple[list[Account], list[Any]]:
        after, refused = [], []
        ended = batch.completed_at or batch.expired_at or batch.cancelled_at or time.time()
        for block, accounts in before:
            records = parts.read_block(self.workspace, self.kind, block)["record"].to_pylist()
            for account in accounts:
                if not account.settled:
                    line = answers.by_id.get(self.rows.request_id(account))
                    account, failure = self.rows.settle(account, records[account.row], line, batch.created_at, ended)
                    if failure is not None and failure.verdict in ("fatal", "refused"):
                        refused.append(failure)
                after.append(account)
        return after, refused

    def _void(self, plan: dict[str, Any], number: int, chunk: dict[str, Any]) -> None:
        """Forget a batch that brought nothing, so that a rerun submits another."""
        chunk["void"].append(chunk["batch"])
        chunk["batch"] = None
        self._save(plan, number)

    def _collected(self, number: int, position: int) -> bool:
        return self.workspace.exists(*self.folder, _accounts_file(number, position))

    def _settled(self, plan: dict[str, Any], number: int) -> Iterator[tuple[int, list[Account]]]:
        """The settled blocks of batches that an earlier run has collected; it may not have written them."""
        for position in range(len(plan["chunks"])):
            if self._collected(number, position):
                yield from _settled_blocks(self._accounts(number, position))

    def _tell(self, sentence: str) -> None:
        if self.progress is not None:
            self.progress(sentence)


def _accounts_file(number: int, chunk: int) -> str:
    return f"round-{number}-{chunk:04d}.parquet"


def _sizes(lines: Iterator[bytes]) -> tuple[int, int]:
    count = length = 0
    for line in lines:
        count, length = count + 1, length + len(line)
    return count, length


def _by_block(accounts: list[Account]) -> dict[int, list[Account]]:
    blocks: dict[int, list[Account]] = {}
    for account in accounts:
        blocks.setdefault(account.block, []).append(account)
    return blocks


def _settled_blocks(accounts: list[Account]) -> Iterator[tuple[int, list[Account]]]:
    for block, of_block in _by_block(accounts).items():
        if all(account.settled for account in of_block):
            yield block, of_block
