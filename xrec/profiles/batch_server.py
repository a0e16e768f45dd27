"""The server side of OpenAI's Batch API: files and batches, by name; errors as users can mend them.

Which requests go into which batch, and what becomes of their answers, is `batch_api.py`'s business.
"""

from collections.abc import Callable
from tempfile import TemporaryFile
from typing import IO, Any

import httpx2
import openai
from openai.types import Batch

from xrec.profiles.answers import FatalError
from xrec.profiles.batch_rows import URL, Answers, read_answers
from xrec.profiles.client import OpenAIClient
from xrec.profiles.failures import classify

# States in which a batch will bring no more answers.
ENDED = ("completed", "expired", "cancelled", "failed")
_USELESS = ("failed", "cancelled", "cancelling")
# Polls that may fail one after the other before the run stops; a rerun goes on.
_FAILED_POLLS = 10
_UPLOAD_SECONDS = 600.0


class BatchServer:
    """Files and batches on an endpoint.

    Args:
        client: names the endpoint, and keeps the key out of errors; it sends nothing here.
        api_key: of the endpoint.
    """

    def __init__(self, client: OpenAIClient, api_key: str):
        self.client, self._failures = client, 0
        self._sdk = openai.OpenAI(
            api_key=api_key, base_url=client.base_url, max_retries=4, timeout=client.request_timeout
        )

    def submitted(self, run: str) -> dict[str, list[str]]:
        """The batches of a run that the server has: name -> ids, latest first; failed and cancelled ones left out."""
        found: dict[str, list[str]] = {}
        for batch in self._call(lambda: list(self._sdk.batches.list(limit=100))):
            metadata = batch.metadata or {}
            if metadata.get("xrec_run") == run and batch.status not in _USELESS:
                found.setdefault(metadata.get("xrec_batch", ""), []).append(batch.id)
        return found

    def create(self, requests: IO[bytes], run: str, name: str, stage: str) -> str:
        """Upload the lines of an input file and submit them as a batch; returns its id.

        Args:
            requests: at its beginning.
            run, name: by which `submitted` finds the batch again.
            stage: a fingerprint, for the user who looks at the batches.
        """
        patient = self._sdk.with_options(timeout=_UPLOAD_SECONDS)
        content = ("requests.jsonl", requests, "application/jsonl")
        file = self._call(lambda: patient.files.create(file=content, purpose="batch"))
        # Never repeated: a request whose answer was lost may have made a batch, which a rerun finds.
        once = self._sdk.with_options(max_retries=0)
        metadata = {"xrec_run": run, "xrec_batch": name, "xrec_stage": stage[:64]}
        return self._call(
            lambda: once.batches.create(input_file_id=file.id, endpoint=URL, completion_window="24h", metadata=metadata)
        ).id

    def poll(self, batch: str) -> Batch | str:
        """How a batch is; or why the server does not say, which it may fail to do a few times in a row.

        Raises:
            FatalError: it keeps failing to, or never will.
        """
        try:
            answer = self._sdk.batches.retrieve(batch)
        except openai.APIError as error:
            failure = classify(error, self.client)
        else:
            self._failures = 0
            return answer
        self._failures += 1
        if failure.verdict == "fatal" or self._failures >= _FAILED_POLLS:
            remedy = failure.remedy or "the batches go on there; run again when it answers"
            raise FatalError(f"{self.client.base_url} does not say how batch {batch} is ({failure}); {remedy}")
        return str(failure)

    def download(self, batch: Batch, known: set[str]) -> Answers:
        """The answers of an ended batch.

        Args:
            batch: with the ids of its output and error files.
            known: the ids of its requests.
        """
        answers = Answers()
        for file in (batch.output_file_id, batch.error_file_id):
            if file:
                with TemporaryFile(prefix="xrec-") as local:
                    self._call(lambda file=file, local=local: self._fetch(file, local))
                    local.seek(0)
                    read_answers(local, known, answers)
        return answers

    def _fetch(self, file: str, local: IO[bytes]) -> None:
        with self._sdk.files.with_streaming_response.content(file) as response:
            for piece in response.iter_bytes():
                local.write(piece)

    def _call(self, call: Callable[[], Any]) -> Any:
        """A call without which the run cannot go on; the SDK has repeated it."""
        try:
            return call()
        except openai.APIError as error:
            failure = classify(error, self.client)
        except httpx2.HTTPError as error:  # in the middle of a file
            failure = f"connection: {self.client.redact(str(error)) or type(error).__name__}"
        remedy = getattr(failure, "remedy", "") or "run again, what was submitted is found again"
        raise FatalError(f"{self.client.base_url} cannot be used for batches ({failure}); {remedy}")
