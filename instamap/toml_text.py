"""Plain TOML: values, tables of values and lists of such tables, read and written."""

import json
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from instamap.errors import DataError
from instamap.files import refusal, replacing

MAX_DEPTH = 100  # of tables within tables


def write_toml(path: Path, values: Mapping[str, Any]) -> None:
    """Writes values, tables of values and lists of such tables, whole or not at all."""
    lines = [f"{key} = {_literal(v)}" for key, v in values.items() if not _tables(v)]
    for name, value in values.items():
        for table in _tables(value):
            heading = f"[{name}]" if table is value else f"[[{name}]]"
            lines += ["", heading, *[f"{key} = {_literal(v)}" for key, v in table.items()]]
    with replacing(path) as sibling:
        sibling.write_text("\n".join(lines) + "\n", encoding="utf-8")


def _tables(value: Any) -> list[dict[str, Any]]:
    """The tables that a value is; none for a plain one."""
    if isinstance(value, dict):
        return [value]
    if isinstance(value, list) and value and all(isinstance(one, dict) for one in value):
        return value
    return []


def _literal(value: Any) -> str:
    """A TOML literal; JSON's spelling of strings, numbers, booleans and lists is also TOML's."""
    return json.dumps(value, ensure_ascii=False)


def read_toml(path: Path) -> dict[str, Any]:
    """The values of a file, such as an earlier run's run.toml. Raises DataError naming the file."""
    remedy = "give the run.toml of an earlier run"
    try:
        text = path.read_text(encoding="utf-8")
        if any(_is_too_deep(line) for line in text.splitlines()):
            raise RecursionError
        return tomllib.loads(text)
    except FileNotFoundError:
        raise DataError(f"settings file '{path}' does not exist; {remedy}") from None
    except OSError as error:
        reason, _ = refusal(error)
    except tomllib.TOMLDecodeError as error:
        reason = str(error)
    except UnicodeDecodeError as error:
        reason = f"byte {error.start} is no UTF-8"
    except (ValueError, RecursionError):  # numbers of thousands of digits, brackets likewise
        reason = "it has numbers that are too long, or tables too deep"
    raise DataError(f"settings file '{path}' cannot be read: {reason}; {remedy}")


def _is_too_deep(line: str) -> bool:
    """Whether a line has a key of so many parts that the parser's time and memory, which grow with
    their square, would be felt.
    """
    key, _, _ = line.partition("=")
    return "," not in key and key.count(".") > MAX_DEPTH
