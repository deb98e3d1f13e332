"""Images of different contrast: what is found of it, and what maps gain by factors; with nothing to
be found, and with poses that are wrong instead.

    python -m benchmarks.accuracy.contrast --data T [--make PATH] [--score PATH] [--seeds 0]
        [--spreads 0 0.2 0.3] [--angle 1] [--out FILE.json]

The images of a set are written anew with more or less of their signal: of each, (a - 1) times what
the truth projects to is added, a normally distributed about 1 with each of --spreads as its
standard deviation (0.1 at least). "poses" is the set as it is with each particle turned about a
random axis by normally distributed angles with the root mean square --angle (degrees). Each is
reconstructed with `--contrast auto` and `--contrast none`, in turn.

USED: whether factors were, by the program's own judgement. FOUND: the spread that it tells. NATS:
the gain of held-out images by factors, each. CORRELATION: of the factors that it wrote with the
true ones. AUC: half 1, MAP AUC: the mean map, each against the truth by the outside tool; HALF AUC:
one half against the other.
"""

import csv
import json
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from benchmarks.accuracy.poses import perturb
from benchmarks.lib import runs, sets
from benchmarks.lib.common import environment
from benchmarks.lib.options import parser
from benchmarks.lib.report import markdown, number, save, show, table
from instamap.data.particles import Particles
from instamap.fourier import ctf
from instamap.fourier.projector import Projector
from instamap.maps import mrc

HEAD = [
    "SET",
    "SEED",
    "IMAGES",
    "CONTRAST",
    "USED",
    "FOUND",
    "NATS",
    "CORRELATION",
    "AUC",
    "MAP AUC",
    "HALF AUC",
    "SECONDS",
]
SAMPLE = 500  # images by which the truth is scaled to them
LEAST = 0.1  # of factors


class Signal:
    """What the truth projects to, in the unit of a set's images."""

    def __init__(self, folder: Path) -> None:
        self.volume = mrc.read(sets.reference(folder))[0]
        particles = Particles.open(folder / "particles.star")
        self.projector = Projector(particles.box, particles.pixel_size)
        batch = particles.batch(torch.arange(min(SAMPLE, particles.count)))
        self.scale = 1.0
        predicted = self(particles, batch.views.index)
        self.scale = float((predicted * batch.images).sum() / predicted.square().sum())

    def __call__(self, particles: Particles, rows: Tensor) -> Tensor:
        """The signal "B D D" of images without noise."""
        views = particles.views[rows].to(torch.float32)
        projection = self.projector(self.volume, views)
        if views.optics is not None:
            projection = ctf.apply(projection, views.optics, particles.pixel_size)
        return self.scale * projection


def with_contrast(folder: Path, factors: Tensor) -> Callable[[Particles, Tensor], Tensor]:
    """Images for `sets.rewrite` whose signal is multiplied by the factors "n"."""
    signal = Signal(folder)

    def images(particles: Particles, rows: Tensor) -> Tensor:
        more = (factors[rows] - 1)[:, None, None]
        return particles.images(rows) + more * signal(particles, rows)

    return images


def draw(count: int, spread: float, seed: int) -> Tensor:
    """True factors "n"."""
    generator = torch.Generator().manual_seed(seed)
    return (1 + spread * torch.randn(count, generator=generator)).clamp(min=LEAST)


def correlation(out: Path, factors: Tensor) -> float | None:
    """Of the factors that a run wrote with the true ones; None where there is nothing to find."""
    file = out / "contrast.csv"
    if not file.exists() or not factors.std() > 0:
        return None
    with file.open(newline="", encoding="utf-8") as text:
        found = [float(row["factor"]) for row in csv.DictReader(text)]
    return float(np.corrcoef(found, factors.numpy())[0, 1])


def both(data: Path, truth: Path, factors: Tensor, seed: int, work: Path, tool: Path) -> list[dict]:
    """One set of images with factors where the program wants them, and without."""
    results = []
    for choice in ("auto", "none"):
        out = work / choice
        run = runs.by_instamap(data, out, seed, "--contrast", choice)
        result = {"contrast": choice, "seed": seed, **run.numbers()}
        if run.code:
            show(f"failed:\n{run.output[-800:]}")
            results.append({**result, "failed": run.output[-800:]})
            continue
        facts = json.loads((out / "result.json").read_text(encoding="utf-8"))
        result["found"] = facts.get("contrast")
        result["correlation"] = correlation(out, factors)
        result["auc"] = runs.score(tool, "map", out / "half1.mrc", truth)["auc"]
        result["map_auc"] = runs.score(tool, "map", out / "map.mrc", truth)["auc"]
        halves = [out / "half1.mrc", out / "half2.mrc"]
        result["half_auc"] = runs.score(tool, "halves", *halves)["auc"]
        results.append(result)
    return results


def one_set(folder: Path, seed: int, spreads: list[float], angle: float, tool: Path) -> list[dict]:
    """All kinds of images of one set."""
    truth = sets.reference(folder)
    count = Particles.open(folder / "particles.star").count
    results = []
    for spread in spreads:
        factors = draw(count, spread, seed)
        with tempfile.TemporaryDirectory() as place:
            work = Path(place)
            data = folder
            if spread:
                data = sets.rewrite(folder, work / "set", with_contrast(folder, factors))
            found = both(data, truth, factors, seed, work, tool)
        results += [{"images": f"spread {spread:g}", **one} for one in found]
    if angle:
        with tempfile.TemporaryDirectory() as place:
            work = Path(place)
            perturb(folder, work / "set", angle / 3**0.5, 0.0, seed)
            found = both(work / "set", truth, torch.ones(count), seed, work, tool)
        results += [{"images": f"poses {angle:g}°", **one} for one in found]
    return [{"set": folder.resolve().name, **one} for one in results]


def row(result: dict) -> list[str]:
    """A line of the table."""
    found = result.get("found") or {}
    used = "-" if not found else "yes" if found["used"] else "no"
    return [
        result["set"],
        str(result["seed"]),
        result["images"],
        result["contrast"],
        used,
        number(found.get("spread"), ".3f"),
        number(found.get("held_out_gain"), "+.3f"),
        number(result.get("correlation"), ".3f"),
        *[number(result.get(key), ".4f") for key in ("auc", "map_auc", "half_auc")],
        number(result.get("seconds"), ".0f"),
    ]


def main() -> None:
    add = parser(__doc__, seeds=(0,))
    add.add_argument(
        "--spreads",
        type=float,
        nargs="+",
        default=[0.0, 0.2, 0.3],
        help="standard deviations of true factors  [default: 0 0.2 0.3]",
    )
    add.add_argument(
        "--angle", type=float, default=1.0, help="of wrong poses, degrees; 0: none  [default: 1]"
    )
    add.add_argument("--markdown", action="store_true", help="print the table as Markdown")
    options = add.parse_args()
    where = environment()
    runs.warm_up()
    results = []
    for folder in [sets.find(each, options.make) for each in options.data]:
        for seed in options.seeds:
            results += one_set(folder, seed, options.spreads, options.angle, options.score)
    rows = [row(one) for one in results]
    show(markdown(HEAD, rows) if options.markdown else table(HEAD, rows))
    made = [sets.describe(folder) for folder in options.data]
    save(options.out, "contrast", where, results, sets=made, angle=options.angle)


if __name__ == "__main__":
    main()
