"""What is told to a person: lines on standard output and standard error, which must not end a run
when nobody reads them any more.
"""

import contextlib
import io
import os
import sys
from collections.abc import Iterator
from typing import TextIO

import typer

from instamap.files import escaped


class SurvivingStream(io.TextIOBase):
    """A text stream that falls silent where writing fails: the reader has left (`| head -1`), the
    disk of a log is full, a terminal is gone, or the stream was closed from the start.
    """

    def __init__(self, stream: TextIO | None) -> None:
        self._stream = stream

    @property
    def encoding(self) -> str:  # type: ignore[override]
        encoding = None if self._stream is None else self._stream.encoding
        return encoding or "utf-8"

    @property
    def errors(self) -> str:  # type: ignore[override]
        errors = None if self._stream is None else self._stream.errors
        return errors or "strict"

    def writable(self) -> bool:
        return True

    def isatty(self) -> bool:
        return self._stream is not None and self._stream.isatty()

    def fileno(self) -> int:
        if self._stream is None:
            raise io.UnsupportedOperation("there is no file")
        return self._stream.fileno()

    def write(self, text: str) -> int:
        if self._stream is not None:
            try:
                self._write(self._stream, text)
            except (OSError, ValueError):
                self._fall_silent(self._stream)
        return len(text)

    def flush(self) -> None:
        if self._stream is not None:
            try:
                self._stream.flush()
            except (OSError, ValueError):
                self._fall_silent(self._stream)

    def _write(self, stream: TextIO, text: str) -> None:
        """Writes the text; what the stream's encoding lacks is escaped."""
        try:
            stream.write(text)
        except UnicodeEncodeError:
            encoded = text.encode(self.encoding, "backslashreplace")
            stream.write(encoded.decode(self.encoding))

    def _fall_silent(self, stream: TextIO) -> None:
        """Sends the rest to nowhere, also what is still in the stream's buffer."""
        self._stream = None
        with contextlib.suppress(OSError, ValueError):
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, stream.fileno())
            os.close(nowhere)


@contextlib.contextmanager
def surviving_streams() -> Iterator[None]:
    """Within the block, writing to standard output and standard error never fails."""
    output = sys.stdout
    errors = sys.stderr
    sys.stdout = SurvivingStream(output)
    sys.stderr = SurvivingStream(errors)
    try:
        yield
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        sys.stdout = output
        sys.stderr = errors


def show(text: str) -> None:
    """Prints lines on standard output; what does not print in names of files is escaped."""
    typer.echo(_printable(text))


def tell(text: str) -> None:
    """Prints lines on standard error, likewise."""
    typer.echo(_printable(text), err=True)


def _printable(text: str) -> str:
    return "\n".join(escaped(line) for line in text.split("\n"))
