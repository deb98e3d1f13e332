"""What a check found: the object with its value, and the remedy."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from instamap.errors import DataError
from instamap.progress import Progress

MAX_ROWS_NAMED = 10


@dataclass(frozen=True)
class Finding:
    """Something of a set of particles that cannot be right, or is doubtful.

    code: its name for programs, such as "background". value: the object and what was measured, for
    people. remedy: what to do. is_wrong: it cannot be right, so nothing is computed.
    """

    code: str
    value: str
    remedy: str
    is_wrong: bool = False

    def __str__(self) -> str:
        return f"{self.value}; {self.remedy}"


def settle(findings: Iterable[Finding], progress: Progress) -> None:
    """Tells what is doubtful, a line each; raises DataError for the first that cannot be right."""
    every = list(findings)
    for finding in every:
        if finding.is_wrong:
            raise DataError(str(finding))
    for finding in every:
        progress.message(f"note: {finding}")


def rows_where(condition: Tensor) -> list[int]:
    """Rows, counted from 0, in which a condition "n" holds."""
    return [int(row) for row in condition.nonzero()[:, 0]]


def named(rows: Sequence[int] | Tensor) -> str:
    """Rows (from 0) as a person counts them: the first ten, and how many more there are."""
    listed = rows.tolist() if isinstance(rows, torch.Tensor) else list(rows)
    words = ", ".join(str(row + 1) for row in listed[:MAX_ROWS_NAMED])
    rest = len(listed) - MAX_ROWS_NAMED
    more = f" and {rest} more" if rest > 0 else ""
    return f"row{'s' if len(listed) > 1 else ''} {words}{more}"
