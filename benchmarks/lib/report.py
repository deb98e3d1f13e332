"""How a benchmark shows its numbers: a table for people; JSON with machine and commit to keep."""

import json
import statistics
import sys
from collections.abc import Iterable
from pathlib import Path

from instamap.cli.text_table import columns


def median(values: Iterable[float | None]) -> float | None:
    """The median of those that are known."""
    known = [v for v in values if v is not None]
    return statistics.median(known) if known else None


def spread(values: Iterable[float | None]) -> float | None:
    """Largest less smallest of those that are known."""
    known = [v for v in values if v is not None]
    return max(known) - min(known) if known else None


def ratio(a: float | None, b: float | None) -> float | None:
    """a / b where both are known."""
    return a / b if a is not None and b else None


def megabytes(size: int | None) -> float | None:
    """Bytes as MB (10^6)."""
    return None if size is None else size / 1e6


def number(value, form: str = ".3g") -> str:
    """A number as a table shows it; a dash for what is not known, text as it is."""
    if value is None:
        return "-"
    return value if isinstance(value, str) else format(value, form)


def table(head: list[str], rows: list[list]) -> str:
    """Lines of aligned columns; rows hold text, numbers or None."""
    return columns([head, *[[number(v) for v in row] for row in rows]])


def markdown(head: list[str], rows: list[list]) -> str:
    """The same as a table of Markdown, its head in small letters, as docs/ has it."""

    def line(cells):
        return "| " + " | ".join(cells) + " |"

    return "\n".join(
        [
            line([h.lower() for h in head]),
            line(["---"] * len(head)),
            *[line([number(v) for v in row]) for row in rows],
        ]
    )


def show(text: str) -> None:
    """One piece of output at once, so that a long run can be followed."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def save(
    out: Path | None, benchmark: str, environment: dict, results: list[dict], **settings
) -> None:
    """Write all numbers with the environment they were measured in to `out`, or as one line to
    standard output.
    """
    record = {"benchmark": benchmark, **settings, "environment": environment, "results": results}
    if out is None:
        show(json.dumps(record))
    else:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
        show(f"all numbers in {out}")
