"""What benchmarks of hidden motions and compositions do alike: options, sets that are missing, runs
and the table.
"""

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.lib import runs, sets
from benchmarks.lib.atomic_states import Recipe
from benchmarks.lib.common import environment
from benchmarks.lib.options import DATA, parser
from benchmarks.lib.report import megabytes, number, save, show, table

MODEL = DATA / "models" / "1igt.pdb.gz"
RECIPE_WORDS = {
    "count": "images",
    "states": "angles of each arm",
    "amplitude": "degrees to either side",
    "box": "pixels",
    "pixel": "Å a pixel",
    "snr": "as of `instamap simulate`",
    "solvent": "as of `instamap simulate`",
}
LAST_COLUMNS = ["GAIN", "AGREEMENT", "SECONDS", "CPU S", "ANON MB", "NOTE"]
SHOWN_OUTPUT = -800  # characters of what a failed run said
KEPT_OUTPUT = -3000


def options_of(doc: str, usual: Recipe, names: Sequence[str]) -> argparse.ArgumentParser:
    """The options that such benchmarks share; `names` of the recipe's values can be chosen."""
    made = parser(doc, score=False, make=False, seeds=(0,))
    made.add_argument(
        "--model",
        type=Path,
        default=usual.model,
        help="of the antibody 1igt, of which missing sets are made",
    )
    for name in names:
        value = getattr(usual, name)
        made.add_argument(
            f"--{name}",
            type=type(value),
            default=value,
            help=f"of missing sets: {RECIPE_WORDS[name]}  [default: %(default)s]",
        )
    made.add_argument(
        "--fitted",
        type=Path,
        metavar="RUN",
        help="score this finished run instead of a new one, without times",
    )
    return made


def recipe_values(options: argparse.Namespace, names: Sequence[str]) -> dict[str, Any]:
    """What was chosen of a recipe."""
    return {name: getattr(options, name) for name in ("model", *names)}


def set_in(folder: Path, make: Callable[[Path], None], truth: str, known: str) -> Path:
    """The set, made where it is missing. Exits where the folder has another one, whose file of the
    `truth` is not there, so that nothing is `known`.
    """
    if not (folder / "particles.star").exists():
        show(f"making '{folder}'")
        make(folder)
    if not (folder / truth).exists():
        sys.exit(
            f"'{folder}' has no {truth}, so no {known} that are known; name a folder that is not"
            " there"
        )
    return folder


def loaded(file: Path) -> Tensor:
    """An array in float64."""
    return torch.from_numpy(np.load(file)).double()


def measured(
    folder: Path,
    work: Path,
    seed: int,
    options: argparse.Namespace,
    flags: Sequence[str],
    judge: Callable[[Path, Path], dict],
) -> dict:
    """A run with these flags, or the finished one, and what `judge` says of set and run."""
    result = {"set": folder.resolve().name, "seed": seed}
    if options.fitted:
        return {**result, **judge(folder, options.fitted)}
    run = runs.by_instamap(folder, work, seed, *flags)
    if run.code:
        show(f"instamap failed on {folder.name}:\n{run.output[SHOWN_OUTPUT:]}")
        return {**result, "failed": run.output[SHOWN_OUTPUT:]}
    return {**result, **run.numbers(), **judge(folder, work), "output": run.output[KEPT_OUTPUT:]}


def row(result: dict, scores: list[str], note: str) -> list[str]:
    """A line of the table: set and seed, the benchmark's own scores, and `LAST_COLUMNS`."""
    form = {"gain": "+.3g", "agreement": ".3f", "seconds": ".0f", "cpu_seconds": ".0f"}
    rest = [number(result.get(key), text) for key, text in form.items()]
    memory = number(megabytes(result.get("anonymous")), ".0f")
    return [result["set"], str(result["seed"]), *scores, *rest, memory, note]


def listed(values: list[float] | None, form: str = ".3f") -> str:
    """Numbers in one cell, or a dash."""
    return ", ".join(number(value, form) for value in values or []) or "-"


def main(
    name: str,
    options: argparse.Namespace,
    head: list[str],
    set_of: Callable[[Path], Path],
    one: Callable[[Path, Path, int], dict],
    row_of: Callable[[dict], list[str]],
    **facts: Any,
) -> None:
    """All sets and seeds, printed as a table and saved with `facts`."""
    where = environment()
    if options.fitted and len(options.data) * len(options.seeds) > 1:
        sys.exit("--fitted is one run; give one set in --data and one seed")
    folders = [set_of(folder) for folder in options.data]
    if not options.fitted:
        runs.warm_up()
    results = runs.each(folders, options.seeds, one)
    show(table(head, [row_of(result) for result in results]))
    described = [sets.describe(folder) for folder in folders]
    save(options.out, name, where, results, sets=described, seeds=options.seeds, **facts)
