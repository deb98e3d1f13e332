"""The options that benchmarks share."""

import argparse
import os
from pathlib import Path

# Particles, maps and models too large to be kept in the project, as in tests/conftest.py.
DATA = Path(os.environ.get("INSTAMAP_TEST_DATA") or Path(__file__).parents[3] / "shared" / "data")
SCORE = Path(os.environ.get("INSTAMAP_SCORE") or DATA.parent / "tools" / "score.py")


def parser(
    doc: str, *, score: bool = True, make: bool = True, seeds: tuple[int, ...] = (0, 1, 2)
) -> argparse.ArgumentParser:
    """--data (one or more), --make, --out, --seeds and --score; `doc` is the docstring of the
    benchmark.
    """
    made = argparse.ArgumentParser(description=doc.splitlines()[0])
    made.add_argument(
        "--data",
        type=Path,
        nargs="+",
        required=True,
        metavar="DIR",
        help="particles.star and what belongs to it",
    )
    if make:
        made.add_argument(
            "--make",
            type=Path,
            help="make_particles.py, to make missing sets that benchmarks/lib/sets.py knows",
        )
    made.add_argument("--out", type=Path, metavar="FILE.json", help="standard output, if left out")
    made.add_argument("--seeds", type=int, nargs="+", default=list(seeds))
    if score:
        made.add_argument(
            "--score",
            type=Path,
            default=SCORE,
            help="score.py, independent of instamap  [default: $INSTAMAP_SCORE]",
        )
    return made
