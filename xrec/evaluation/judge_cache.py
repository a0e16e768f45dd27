"""Answers of judges, kept in a workspace by what was asked, so that nothing is paid for twice.

They lie in the folder `judge/` as small parquet files, one for each batch of new answers; several processes may add to
it at once. An answer that is there twice is the same question's, so either may be taken.
"""

import hashlib
import io
import json
import uuid
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from xrec.workspace import Workspace

FOLDER = "judge"


@dataclass(frozen=True)
class KeptAnswer:
    """An answer that was of use.

    Attributes:
        key: the hash of what was asked, of whom.
        judge: the model's name in the settings.
        model: its name as the endpoint gave it.
        content: the JSON document that it answered.
        tokens_in, tokens_out: of all requests made for it.
    """

    key: str
    judge: str
    model: str
    content: str
    tokens_in: int
    tokens_out: int


def key_of(judge: str, messages: Sequence[dict[str, str]], schema: dict[str, Any]) -> str:
    """The SHA-256, in hexadecimal, of a question: who is asked, in which words, for what."""
    asked = json.dumps([judge, list(messages), schema], sort_keys=True)
    return hashlib.sha256(asked.encode()).hexdigest()


class AnswerCache:
    """The answers of one judge; those that are there are read once, when this is made.

    Args:
        workspace: where they are kept; None: in memory alone.
        judge: the model's name in the settings.
    """

    def __init__(self, workspace: Workspace | None, judge: str):
        self._workspace = workspace
        self._contents: dict[str, str] = {}
        for file in workspace.files(FOLDER) if workspace else []:
            if workspace and file.endswith(".parquet"):
                table = pq.read_table(
                    io.BytesIO(workspace.read_bytes(FOLDER, file)),
                    columns=["key", "content"],
                    filters=[("judge", "=", judge)],
                )
                self._contents |= zip(table["key"].to_pylist(), table["content"].to_pylist(), strict=True)

    def __len__(self) -> int:
        return len(self._contents)

    def get(self, key: str) -> str | None:
        """The document that was answered, if any."""
        return self._contents.get(key)

    def add(self, answers: list[KeptAnswer]) -> None:
        """Keep new answers, in a file of their own."""
        self._contents |= {answer.key: answer.content for answer in answers}
        if self._workspace is not None and answers:
            table = pa.Table.from_pylist([asdict(answer) for answer in answers])
            with self._workspace.open_new(FOLDER, f"{uuid.uuid4().hex}.parquet") as file:
                pq.write_table(table, file, compression="zstd")
