"""The log of a run: what each evaluation of its fits found, for plugins and log.jsonl."""

import csv
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from instamap.errors import DataError
from instamap.files import replacing
from instamap.plugin.registry import Registry, default
from instamap.progress import Evaluation, ForwardingProgress, Progress


class LoggedProgress(ForwardingProgress):
    """A listener that keeps every evaluation, tells plugins of it and passes all on to another.

    entries: one for each evaluation, in their order, as log.jsonl has them.
    """

    def __init__(self, listener: Progress, registry: Registry | None = None) -> None:
        super().__init__(listener)
        self.entries: list[dict[str, Any]] = []
        self._registry = registry or default()

    def evaluated(self, fit: str, evaluation: Evaluation, steps: int) -> None:
        metrics = {
            "stage": evaluation.stage,
            "loss": evaluation.loss,
            "held_out": evaluation.held_out,
            "seconds": round(evaluation.seconds, 3),
        }
        step = evaluation.step
        self.entries.append({"fit": fit, "step": step, **metrics})
        self._registry.hook.instamap_step_finished(name=fit, step=step, metrics=metrics)
        super().evaluated(fit, evaluation, steps)


def write_log(path: Path, entries: list[dict[str, Any]]) -> None:
    """Writes log.jsonl: one JSON object a line."""
    lines = [json.dumps(entry) for entry in entries]
    with replacing(path) as sibling:
        sibling.write_text("".join(line + "\n" for line in lines), encoding="utf-8")


def write_json(path: Path, values: dict[str, Any]) -> None:
    """Writes a record as indented JSON."""
    with replacing(path) as sibling:
        sibling.write_text(json.dumps(values, indent=1) + "\n", encoding="utf-8")


def read_json(path: Path) -> dict[str, Any]:
    """The values of a record. Raises DataError where it is missing or damaged."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        values = None
    if not isinstance(values, dict):
        raise DataError(
            f"'{path}' is missing or damaged; copy the whole folder again, or repeat the run"
        )
    return values


@contextmanager
def reading(file: Path) -> Iterator[None]:
    """Turns whatever is wrong with what a file says into a DataError that names it."""
    try:
        yield
    except (
        OSError,
        LookupError,
        TypeError,
        ValueError,
        AttributeError,
        RecursionError,
        csv.Error,
    ):
        raise DataError(
            f"'{file}' is damaged; copy the whole folder again, or repeat the run"
        ) from None
