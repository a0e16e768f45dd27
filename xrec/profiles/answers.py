"""What every writer of texts returns and raises; apart from the client's library, which not every writer needs."""

from dataclasses import dataclass
from typing import Protocol

from xrec.config.profile import TextKind


@dataclass(frozen=True)
class Answer:
    """What became of one record.

    Attributes:
        text: the profile or explanation; empty when failed.
        model: the model that answered as the endpoint names it, or as it was asked for where nothing answered.
        tokens_in, tokens_out: of all requests made for the row, as the endpoint counted them.
        attempts: requests made, repetitions and the second asking included; a connection that was refused is none.
        latency: seconds from the first request to the final answer, waiting included.
        status: `ok` or `failed`.
        error: why it failed, as `reason: detail`; None when ok. Never holds the key.
    """

    text: str
    model: str
    tokens_in: int
    tokens_out: int
    attempts: int
    latency: float
    status: str
    error: str | None


class Writer(Protocol):
    """Turns records into texts."""

    async def write(self, kind: TextKind, records: list[str]) -> list[Answer]:
        """Write one text a record.

        Args:
            kind: what to write.
            records: JSON strings, the data that a prompt quotes.

        Returns:
            An answer a record, in the records' order; a record without a text has status `failed`.

        Raises:
            FatalError: nothing further can succeed.
        """
        ...


class FatalError(RuntimeError):
    """Nothing further can succeed: a wrong key, an unknown model, a refused setting, an endpoint out of reach."""
