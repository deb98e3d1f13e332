"""What a run leaves behind besides maps: run.toml, with which it can be repeated, and log.jsonl."""

import json
import tomllib
from collections.abc import Callable
from pathlib import Path

from instamap.errors import DataError
from instamap.fit.loop import Look
from instamap.plugin.registry import default


def write_toml(path: Path, settings: dict) -> None:
    """Write a dict of values, of tables of values and of lists of such tables."""
    plain = [f"{k} = {_value(v)}" for k, v in settings.items() if not _tables(v)]
    for name, value in settings.items():
        for table in _tables(value):
            head = f"[{name}]" if table is value else f"[[{name}]]"
            plain += ["", head, *[f"{k} = {_value(v)}" for k, v in table.items()]]
    path.write_text("\n".join(plain) + "\n", encoding="utf-8")


def _tables(value) -> list[dict]:
    """The tables that a value is; none for a plain one."""
    if isinstance(value, dict):
        return [value]
    return (
        value
        if isinstance(value, list) and value and all(isinstance(v, dict) for v in value)
        else []
    )


def _value(value) -> str:
    """A TOML literal; JSON's spelling of strings, numbers, booleans and lists is also TOML's."""
    return json.dumps(value, ensure_ascii=False)


def read_toml(path: Path) -> dict:
    """The settings of an earlier run. Raises DataError naming the file."""
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DataError(
            f"settings file '{path}' does not exist; give the run.toml of an earlier run"
        ) from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, OSError) as error:
        raise DataError(
            f"settings file '{path}' cannot be read: {error}; give the run.toml of an earlier run"
        ) from None


class Log:
    """log.jsonl: one JSON object a line, flushed as it is written."""

    def __init__(self, path: Path):
        self.file = path.open("w", encoding="utf-8")

    def write(self, entry: dict) -> None:
        self.file.write(json.dumps(entry) + "\n")
        self.file.flush()

    def __enter__(self) -> "Log":
        return self

    def __exit__(self, *exception) -> None:
        self.file.close()


def reporting(log: Log, watch: Callable[[str, Look], None]) -> Callable[[str, Look], None]:
    """What a fit called `name` tells of each look: the log, plugins (hook `instamap_step_finished`)
    and `watch` learn of it.
    """

    def report(name: str, look: Look) -> None:
        metrics = {
            "stage": look.stage,
            "loss": look.loss,
            "held_out": look.held_out,
            "seconds": round(look.seconds, 3),
        }
        log.write({"fit": name, "step": look.step, **metrics})
        default().hook.instamap_step_finished(name=name, step=look.step, metrics=metrics)
        watch(name, look)

    return report
