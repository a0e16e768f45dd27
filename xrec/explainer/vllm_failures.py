"""Why an engine of vLLM did not start, or ended: what failed in its processes, told to the one that started them.

vLLM's core and workers are processes that log what went wrong and end; the one that started them is told no more than
that they did. While the environment names a folder, each of them writes the first errors that it logs there. Nothing
here imports vLLM.
"""

import logging
import multiprocessing
import os
import time
from typing import Any

import fsspec

# Names the folder, a path or an fsspec URI, for vLLM's processes.
VARIABLE = "XREC_VLLM_FAILURES"
_MOST_OF_A_PROCESS = 8
_CHARACTERS = 1500
_EXCEPTION, _MESSAGE = "exception", "message"
# What vLLM raises where another process has failed.
_ELSEWHERE = ("root cause", "EngineDeadError", "Executor failed")


class _FailureFiles(logging.Handler):
    """Writes the errors that are logged, a file each, named by time."""

    def __init__(self, folder: str):
        super().__init__(logging.ERROR)
        self.folder, self.left = folder, _MOST_OF_A_PROCESS

    def emit(self, record: logging.LogRecord) -> None:
        if self.left == 0:
            return
        self.left -= 1
        error = record.exc_info[1] if record.exc_info else None
        try:
            kind, text = (_EXCEPTION, describe(error)) if error else (_MESSAGE, _line(record.getMessage()))
            files, folder = fsspec.url_to_fs(self.folder)
            files.makedirs(folder, exist_ok=True)
            files.pipe_file(f"{folder}/{time.time_ns():020d}-{os.getpid()}.{kind}", text.encode())
        except Exception:
            self.handleError(record)


def record_failures() -> None:
    """From now on write the errors that vLLM logs in this process into the folder that the environment names.

    Does nothing where it names none, and in a process that `multiprocessing` has not started: its exceptions reach
    whoever called it.
    """
    folder = os.environ.get(VARIABLE)
    logger = logging.getLogger("vllm")
    known = any(isinstance(handler, _FailureFiles) for handler in logger.handlers)
    if folder and not known and multiprocessing.parent_process() is not None:
        logger.addHandler(_FailureFiles(folder))


def root_cause(folder: str, storage_options: dict[str, Any] | None = None) -> str | None:
    """The error in the folder that the others follow from, in one line; None where none was written.

    It is the first exception, unless that only says that another process has failed; else the first error message.
    """
    files, root = fsspec.url_to_fs(folder, **({"use_listings_cache": False} | (storage_options or {})))
    if not files.isdir(root):
        return None
    written = [(str(path), files.cat_file(path).decode()) for path in sorted(files.find(root))]
    exceptions = [text for path, text in written if path.endswith(_EXCEPTION)]
    own = [text for text in exceptions if not blames_another_process(text)]
    messages = [text for path, text in written if path.endswith(_MESSAGE)]
    return next(iter([*own, *messages, *exceptions]), None)


def blames_another_process(text: str) -> bool:
    """Whether an error of vLLM's only says that another process has failed."""
    return any(words in text for words in _ELSEWHERE)


def describe(error: BaseException) -> str:
    """An exception and those that it was raised from, in one line."""
    said: list[str] = []
    cause: BaseException | None = error
    while cause is not None:
        said.append(_line(f"{type(cause).__name__}: {cause}"))
        cause = cause.__cause__
    return _line(", because of ".join(said))


def _line(text: str) -> str:
    return " ".join(text.split())[:_CHARACTERS]
