"""The rows of OpenAI's Batch API: a request a line of a file, an answer a line of another, and what they come to.

A row's *account* goes from round to round until it is settled: a row without an answer is asked again, an answer of no
use is corrected once. Files and batches on the server are `batch_api.py`'s business.
"""

import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field, replace
from typing import Literal

import httpx2
import openai
import pyarrow as pa

from xrec.config import TextKind
from xrec.profiles.answers import Answer
from xrec.profiles.client import OpenAIClient
from xrec.profiles.failures import Failure, classify
from xrec.profiles.parsing import AnswerError, Reason, parse_answer
from xrec.profiles.prompts import SCHEMAS, Prompts
from xrec.profiles.writer import corrected

URL = "/v1/chat/completions"
# Of one input file, as documented.
MOST_REQUESTS, MOST_BYTES = 50_000, 200_000_000


@dataclass(frozen=True)
class Account:
    """How far one row has come.

    Attributes:
        state: `ask` for a row that has no answer yet, `correct` for one whose answer was of no use; settled: `ok`,
            `failed`.
        said, reason: the answer that was rejected, and why.
        trouble: what kept the row from its last answer.
        started: when the first request was sent, seconds since 1970; 0: not yet.
        seconds: from then to the last answer.
    """

    block: int
    row: int
    state: Literal["ask", "correct", "ok", "failed"] = "ask"
    text: str = ""
    said: str = ""
    reason: Reason | Literal[""] = ""
    trouble: str = ""
    model: str = ""
    tokens_in: int = 0
    tokens_out: int = 0
    attempts: int = 0
    started: float = 0.0
    seconds: float = 0.0

    @property
    def settled(self) -> bool:
        return self.state in ("ok", "failed")

    def answer(self, model: str) -> Answer:
        """The outcome of a settled row; `model` is the one that was asked for."""
        error = None if self.state == "ok" else self.trouble
        counts = (self.tokens_in, self.tokens_out, self.attempts, self.seconds)
        return Answer(self.text, self.model or model, *counts, self.state, error)


@dataclass
class Answers:
    """The lines of a batch's output and error files, by the id of their request.

    Attributes:
        unknown, repeated, unreadable: lines of no request of ours, of one that has a line already, and of no JSON
            object with an id; all are left out.
    """

    by_id: dict[str, dict] = field(default_factory=dict)
    unknown: int = 0
    repeated: int = 0
    unreadable: int = 0


class Correspondent:
    """Writes the requests of rows and reads their answers.

    Args:
        kind: which texts.
        prompts: what is asked.
        client: whose endpoint and parameters the requests are for; it sends nothing here.
        max_words: the longest text that is accepted.
        max_attempts: requests that one row may make.
    """

    def __init__(self, kind: TextKind, prompts: Prompts, client: OpenAIClient, max_words: int, max_attempts: int):
        self.kind: TextKind = kind
        self.prompts, self.client = prompts, client
        self.max_words, self.max_attempts = max_words, max_attempts

    def request_id(self, account: Account) -> str:
        """`<kind>/<block>/<row>`, and `/2` where an answer is corrected."""
        return f"{self.kind}/{account.block}/{account.row}" + ("/2" if account.state == "correct" else "")

    def messages(self, account: Account, record: str) -> list[dict[str, str]]:
        messages = self.prompts.messages(self.kind, record)
        if account.state == "correct" and account.reason:
            return corrected(messages, account.said, account.reason, self.max_words)
        return messages

    def line(self, account: Account, record: str) -> bytes:
        """The row's request, as a line of an input file."""
        body = self.client.request_body(self.messages(account, record), SCHEMAS[self.kind])
        request = {"custom_id": self.request_id(account), "method": "POST", "url": URL, "body": body}
        return json.dumps(request).encode() + b"\n"

    def settle(
        self, account: Account, record: str, line: dict | None, sent: float, ended: float
    ) -> tuple[Account, Failure | None]:
        """The row's account after one more request, and the endpoint's error if that is what the answer was.

        Args:
            account: before it, not settled.
            record: what the prompt quotes.
            line: of the output or error file; None: there is none.
            sent, ended: when the batch was created and ended, seconds since 1970.
        """
        started = account.started or sent
        account = replace(account, attempts=account.attempts + 1, started=started, seconds=max(0.0, ended - started))
        if line is None:
            return self._again(account, "missing: the batch ended without an answer to this request"), None
        if line.get("error"):
            error = line["error"] if isinstance(line["error"], dict) else {"message": str(line["error"])}
            code = str(error.get("code") or "error")
            detail = self.client.redact(str(error.get("message") or "the endpoint gave no reason"))
            return self._again(account, f"{code}: {detail}"), None
        response = line.get("response") or {}
        if response.get("status_code") != 200:
            failure = self._failure(response)
            if failure.verdict in ("retry", "unreachable"):
                return self._again(account, str(failure)), failure
            return replace(account, state="failed", trouble=str(failure)), failure
        return self._read(account, record, response), None

    def _read(self, account: Account, record: str, response: dict) -> Account:
        messages = self.messages(account, record)
        try:
            completion = self.client.completion(messages, json.dumps(response.get("body")))
        except ValueError as error:
            return self._again(account, f"bad_response: {error}")
        account = replace(
            account,
            model=completion.model,
            tokens_in=account.tokens_in + completion.tokens_in,
            tokens_out=account.tokens_out + completion.tokens_out,
        )
        try:
            return replace(account, state="ok", text=parse_answer(self.kind, completion, self.max_words))
        except AnswerError as error:
            reason: Reason = error.reason
            account = replace(account, trouble=self.client.redact(f"{reason}: {error}"))
        if account.state == "correct" or account.attempts >= self.max_attempts:
            return replace(account, state="failed")
        return replace(account, state="correct", said=completion.content or completion.refusal or "", reason=reason)

    def _again(self, account: Account, trouble: str) -> Account:
        state = "failed" if account.attempts >= self.max_attempts else account.state
        return replace(account, state=state, trouble=trouble)

    def _failure(self, response: dict) -> Failure:
        """What an error of a single request means, judged as if it had come by itself."""
        request = httpx2.Request("POST", f"{self.client.base_url.rstrip('/')}/chat/completions")
        body, status = response.get("body"), response.get("status_code")
        answer = httpx2.Response(status if isinstance(status, int) else 500, json=body, request=request)
        content = body.get("error", body) if isinstance(body, dict) else body
        return classify(openai.APIStatusError("", response=answer, body=content), self.client)


def read_answers(lines: Iterable[str | bytes], known: set[str], answers: Answers) -> None:
    """Add the lines of an output or error file to `answers`; the first line of a request counts."""
    for text in lines:
        if not text.strip():
            continue
        try:
            line = json.loads(text)
        except ValueError:
            line = None
        if not isinstance(line, dict) or not isinstance(line.get("custom_id"), str):
            answers.unreadable += 1
        elif line["custom_id"] not in known:
            answers.unknown += 1
        elif line["custom_id"] in answers.by_id:
            answers.repeated += 1
        else:
            answers.by_id[line["custom_id"]] = line


def chunks(sizes: Iterable[tuple[int, int, int]], most_requests: int, most_bytes: int) -> Iterator[list[int]]:
    """Cut blocks, which stay whole, into input files.

    Args:
        sizes: block, its requests and their bytes.
        most_requests, most_bytes: of a file.

    Raises:
        ValueError: one block alone is too large.
    """
    chunk: list[int] = []
    requests = size = 0
    for block, count, length in sizes:
        if count > most_requests or length > most_bytes:
            raise ValueError(
                f"block {block} has {count:,} requests of {length:,} bytes together, and a file of the Batch API takes "
                f"{most_requests:,} of {most_bytes:,}; lower profile.compute.rows_per_block"
            )
        if chunk and (requests + count > most_requests or size + length > most_bytes):
            yield chunk
            chunk, requests, size = [], 0, 0
        chunk.append(block)
        requests, size = requests + count, size + length
    if chunk:
        yield chunk


def to_table(accounts: list[Account]) -> pa.Table:
    return pa.Table.from_pylist([asdict(account) for account in accounts])


def from_table(table: pa.Table) -> list[Account]:
    return [Account(**row) for row in table.to_pylist()]
