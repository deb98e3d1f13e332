"""Large boxes and many images: time, memory and accuracy, beside relion_reconstruct in the same
run.

    python -m benchmarks.speed.sizes --data t256a [--small T] [--only halves image many wide small]
        [--images 131899] [--make PATH] [--score PATH] [--out FILE.json]

Each line can be had alone (--only):

- halves: two half maps of the set of --data, beside two runs of relion_reconstruct at the same
time; and what was told before, beside what it took.
- image: what one image more costs: the difference between two sets (--more) by the images between
them. instamap gathers statistics (`accumulate`), relion_reconstruct makes one map of few images
(--relion). Stages that look at a sample only take no more for the larger one, since the smaller is
larger than any sample.
- many: two half maps of --images particles: the set's images again and again, in poses that differ
by about a degree. So the file of images stays in the system's cache and reading it from a disk is
not in the time.
- wide: a molecule in a box of 512 pixels, beside the same molecule, poses and noise in 256: --wide
images of each, which instamap simulates.
- small: two half maps of the set of --small (64 pixels), as in `halves`.

Memory is the most that all processes of a program held at once, without pages of mapped files.
"""

import shutil
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from benchmarks.accuracy import halves
from benchmarks.lib import runs, sets
from benchmarks.lib.common import environment
from benchmarks.lib.options import DATA, parser
from benchmarks.lib.programs import INSTAMAP, Run, measure, succeeded
from benchmarks.lib.report import median, number, ratio, save, show, table
from instamap.data.particles import Particles

MODEL = DATA / "models" / "3j5p.pdb.gz"
PIXEL_SIZE = 0.8  # Å, of the line `wide`
SNR = 0.03  # in the small box of it
BOX = 256  # the small box of it; the wide one is twice as large
HEAD = ["LINE", "NUMBER", "INSTAMAP", "BESIDE", "OUTCOME", "BAR"]


@dataclass(frozen=True)
class Row:
    """A number of a line: instamap's, the one beside it if there is one, and what is made of them
    (a ratio, a difference, or instamap's own), which is to be at most, or at least, the bar.
    """

    line: str
    what: str
    ours: float | None
    beside: float | None = None
    outcome: float | None = None
    bar: float | None = None
    at_least: bool = False

    def cells(self) -> list[str]:
        sign = ">=" if self.at_least else "<="
        bar = "-" if self.bar is None else f"{sign} {self.bar:g}"
        numbers = [number(value, ".4g") for value in (self.ours, self.beside, self.outcome)]
        return [self.line, self.what, *numbers, bar]


def ratio_row(
    line: str, what: str, ours: float | None, beside: float | None, bar: float | None
) -> Row:
    return Row(line, what, ours, beside, ratio(ours, beside), bar)


def own_row(line: str, what: str, ours: float | None, bar: float | None = None) -> Row:
    return Row(line, what, ours, outcome=ours, bar=bar)


def gain_row(
    line: str, what: str, ours: float | None, beside: float | None, bar: float | None
) -> Row:
    known = ours is not None and beside is not None
    outcome = ours - beside if known else None
    return Row(line, what, ours, beside, outcome, bar, at_least=True)


def scaled(value: float | None, unit: float) -> float | None:
    return None if value is None else value * unit


def gigabytes(run: Run) -> float | None:
    """The memory that was needed, in GB."""
    return scaled(run.anonymous, 1e-9)


class Lines:
    """The lines by name; each gives its rows and keeps all numbers in `results`."""

    def __init__(self, options) -> None:
        self.options = options
        self.folder = sets.find(options.data[0], options.make)
        self.results: list[dict] = []

    def halves(self) -> list[Row]:
        return self._half_maps("halves", self.folder, time=0.6, memory=0.5, gain=0.03)

    def small(self) -> list[Row]:
        folder = sets.find(self.options.small, self.options.make)
        return self._half_maps("small", folder, time=1.2, auc=0.861)

    def _half_maps(
        self,
        line: str,
        folder: Path,
        *,
        time: float,
        memory: float | None = None,
        gain: float | None = None,
        auc: float | None = None,
    ) -> list[Row]:
        """Both programs, with bars of the ratios, of the gain in AUC, and of the AUC itself."""
        turns = []
        for i, seed in enumerate(self.options.seeds):
            with tempfile.TemporaryDirectory() as work:
                turns += halves.turn(
                    folder, Path(work), seed, self.options.score, i % 2 == 1, together=True
                )
        self.results += [{"line": line, **one} for one in turns]

        def middle(program: str, key: str) -> float | None:
            return median(one.get(key) for one in turns if one["program"] == program)

        def compared(what: str, key: str, bar: float | None, unit: float = 1) -> Row:
            ours, theirs = (middle(program, key) for program in ("instamap", runs.RELION))
            return ratio_row(line, what, scaled(ours, unit), scaled(theirs, unit), bar)

        ours, theirs = (middle(program, "auc") for program in ("instamap", runs.RELION))
        return [
            compared("seconds", "seconds", time),
            compared("cpu seconds", "cpu_seconds", None),
            compared("GB", "anonymous", memory, 1e-9),
            gain_row(line, "AUC of half 1, and gain", ours, theirs, gain),
            Row(line, "AUC of half 1", ours, theirs, ours, auc, at_least=True),
            *_told(line, [one["needs"] for one in turns if one.get("needs")]),
        ]

    def image(self) -> list[Row]:
        few, many = self.options.more
        with tempfile.TemporaryDirectory() as name:
            work = Path(name)
            ours = []
            for count in (few, many):
                folder = sets.listed(self.folder, work / str(count), count)
                words = [
                    "accumulate",
                    folder / "particles.star",
                    "-o",
                    work / f"{count}-statistics",
                ]
                ours.append(succeeded(measure([INSTAMAP, *words])))
            theirs = self._relion_of_few(work)
        cost = slope(*ours, many - few)
        beside = None
        if theirs:
            less, more = self.options.relion
            beside = slope(*theirs, more - less)
        each = {"instamap": cost, runs.RELION: beside}
        self.results.append({"line": "image", "images": self.options.more, "ms": each})
        rows = [own_row("image", "ms", cost["ms"], 2.5)]
        for what, bar in (("ms", 0.5), ("cpu ms", None)):
            rows.append(ratio_row("image", what, cost[what], beside and beside[what], bar))
        return rows

    def _relion_of_few(self, work: Path) -> list[Run] | None:
        """relion_reconstruct of the first images, twice; None where it is not installed."""
        if shutil.which(runs.RELION) is None:
            return None
        particles = Particles.open(self.folder / "particles.star")
        return [
            succeeded(
                runs.relion_of_rows(
                    self.folder, particles.table, torch.arange(count), work / f"{count}.mrc"
                )
            )
            for count in self.options.relion
        ]

    def many(self) -> list[Row]:
        count = self.options.images
        with tempfile.TemporaryDirectory() as work:
            folder = sets.listed(self.folder, Path(work) / "set", count)
            run = succeeded(runs.by_instamap(folder, Path(work) / "out", self.options.seeds[0]))
            fits = runs.fits(Path(work) / "out")
        self.results.append({"line": "many", "images": count, **run.numbers(), "fits": fits})
        return [
            own_row("many", f"minutes, {count:,} images", run.seconds / 60, 20),
            own_row("many", "cpu minutes", run.cpu_seconds / 60),
            own_row("many", "GB", gigabytes(run), 4),
        ]

    def wide(self) -> list[Row]:
        found = {}
        with tempfile.TemporaryDirectory() as work:
            for box in (BOX, 2 * BOX):
                folder = Path(work) / str(box)
                snr = SNR * (BOX / box) ** 2  # of more pixels, most of them empty: the same noise
                words = ["-n", self.options.wide, "--box", box, "--pixel", PIXEL_SIZE, "--snr", snr]
                succeeded(measure([INSTAMAP, "simulate", MODEL, *words, "-o", folder]))
                run = runs.by_instamap(folder, folder / "out", self.options.seeds[0])
                found[box] = succeeded(run)
                result = {"line": "wide", "box": box, "images": self.options.wide}
                fits = runs.fits(folder / "out")
                self.results.append({**result, **run.numbers(), "fits": fits})
        narrow, wide = found.values()
        return [
            ratio_row("wide", "seconds", wide.seconds, narrow.seconds, 1.3),
            ratio_row("wide", "cpu seconds", wide.cpu_seconds, narrow.cpu_seconds, None),
            own_row("wide", "GB", gigabytes(wide), 6),
        ]


def _told(line: str, needs: list[dict[str, tuple[float, float]]]) -> list[Row]:
    """What was told before, beside what it took, and the factor between them either way."""
    rows = []
    for what in needs[0] if needs else ():
        said = median(one[what][0] for one in needs)
        taken = median(one[what][1] for one in needs)
        factor = max(said / taken, taken / said)
        rows.append(Row(line, f"{what}, told", said, taken, factor, 1.5))
    return rows


def slope(few: Run, many: Run, between: int) -> dict[str, float]:
    """Milliseconds of one image more, by the clock and of all cores."""
    return {
        "ms": 1e3 * (many.seconds - few.seconds) / between,
        "cpu ms": 1e3 * (many.cpu_seconds - few.cpu_seconds) / between,
    }


def main() -> None:
    add = parser(__doc__, seeds=(0,))
    names = ("halves", "image", "many", "wide", "small")
    add.add_argument("--only", nargs="+", choices=names, default=names, help="of the lines")
    add.add_argument("--small", type=Path, metavar="DIR", help="the set of the line `small`")
    add.add_argument("--images", type=int, default=131_899, help="of the line `many`")
    add.add_argument("--more", type=int, nargs=2, default=[8000, 12_000], metavar="N")
    add.add_argument("--relion", type=int, nargs=2, default=[500, 1500], metavar="N")
    add.add_argument("--wide", type=int, default=600, metavar="N", help="images of that line")
    options = add.parse_args()
    if "small" in options.only and options.small is None:
        add.error("the line `small` needs a set of 64 pixels: --small, or leave it out by --only")
    where = environment()
    runs.warm_up()
    lines = Lines(options)
    rows: list[Row] = []
    for name in options.only:
        one: Callable[[], list[Row]] = getattr(lines, name)
        rows += one()
    show(table(HEAD, [row.cells() for row in rows]))
    save(
        options.out,
        "sizes",
        where,
        lines.results,
        sets=[sets.describe(lines.folder)],
        rows=[asdict(row) for row in rows],
    )


if __name__ == "__main__":
    main()
