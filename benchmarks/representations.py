"""Every registered representation through the normal engine on one set, and relion_reconstruct beside them.

    python -m benchmarks.representations --data T [--only NAME ...] [--make PATH] [--score PATH] [--seeds 0 1 2] [--out FILE.json]

Each is run as the command line runs it, with its own defaults, turn by turn; numbers are medians over the seeds. HELD-OUT is the best
look's, in nats per image beyond an empty map, the mean of both halves; FIT S the seconds of both fits, without statistics and start-up.
"""

import tempfile
from pathlib import Path

import torch

from benchmarks import runs, sets
from benchmarks.common import environment
from benchmarks.options import parser
from benchmarks.report import median, megabytes, number, save, show, spread, table
from instamap.compose import choose, compose, defaults
from instamap.data.particles import Particles
from instamap.registry import default
from instamap.scene import Scene

HEAD = ["SET", "REPRESENTATION", "AUC", "SPREAD", "HALF AUC", "HELD-OUT", "STEP", "SECONDS", "FIT S", "PARAMETERS", "RSS MB", "ANON MB"]
RELION = "(relion_reconstruct)"


def parameters(name: str, particles: Particles) -> int:
    """How many numbers the model of a map with this representation learns."""
    groups = int(particles.views.group.max()) + 1
    scene = Scene(box=particles.box, pixel_size=particles.pixel_size, count=particles.count, premultiplied=particles.premultiplied,
                  noise_variance=torch.ones(groups, particles.box // 2 + 1))  # fmt: skip
    model = compose({**defaults(), "representation": choose("representation", name, [])}, scene)
    return sum(p.numel() for p in model.parameters())


def one(folder: Path, name: str, seed: int, tool: Path, work: Path) -> dict | None:
    """One representation, or relion_reconstruct, with one seed."""
    result = {"set": folder.resolve().name, "representation": name, "seed": seed}
    if name == RELION:
        run = runs.by_relion(folder, work / "out")
    else:
        run = runs.by_instamap(folder, work / "out", seed, "--representation", name, "--engine", "normal")
    if run is None:
        return None
    if run.code:
        show(f"{name} failed on {folder.name}:\n{run.output[-800:]}")
        return {**result, "failed": run.output[-800:]}
    result |= {**run.numbers(), **runs.judge(tool, folder, work / "out", None)}
    if name != RELION:
        fits = runs.fits(work / "out").values()
        result |= {"held_out": sum(f["held_out"] for f in fits) / len(fits), "fit_seconds": sum(f["seconds"] for f in fits)}
        result["step"] = sum(f["step"] for f in fits) / len(fits)
    return result


def row(name: str, representation: str, results: list[dict], count: int | None) -> list[str]:
    """Medians over the seeds, as text."""
    some = [r for r in results if (r["set"], r["representation"]) == (name, representation)]
    middle = lambda key, form: number(median(r.get(key) for r in some), form)
    memory = [number(megabytes(median(r.get(k) for r in some)), ".0f") for k in ("rss", "anonymous")]
    scores = [middle("auc", ".4f"), number(spread(r.get("auc") for r in some), ".4f"), middle("half_auc", ".4f")]
    fit = [middle("held_out", "+.4f"), middle("step", ".0f"), middle("seconds", ".1f"), middle("fit_seconds", ".1f")]
    return [name, representation, *scores, *fit, number(count, ","), *memory]


def main() -> None:
    add = parser(__doc__)
    add.add_argument("--only", nargs="+", help="of the representations  [default: all]")
    options, where = add.parse_args(), environment()
    names = [RELION, *(options.only or [part.name for part in default().parts("representation")])]
    folders, results = [sets.find(folder, options.make) for folder in options.data], []
    runs.warm_up()
    for seed in options.seeds:
        for folder in folders:
            for name in names:
                with tempfile.TemporaryDirectory() as work:
                    found = one(folder, name, seed, options.score, Path(work))
                results += [found] if found else []
    rows, counts = [], {}
    for folder in folders:
        particles = Particles.open(folder / "particles.star")
        counts[folder.resolve().name] = {name: parameters(name, particles) for name in names[1:]}
        rows += [row(folder.resolve().name, name, results, counts[folder.resolve().name].get(name)) for name in names]
    show(table(HEAD, rows))
    described = [sets.describe(folder) for folder in folders]
    save(options.out, "representations", where, results, sets=described, seeds=options.seeds, parameters=counts)


if __name__ == "__main__":
    main()
