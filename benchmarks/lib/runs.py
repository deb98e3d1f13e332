"""Half maps of a set by instamap or by relion_reconstruct, measured and scored."""

import csv
import json
import re
import shutil
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Callable
from pathlib import Path

import torch

from benchmarks.lib import sets
from benchmarks.lib.programs import INSTAMAP, Run, measure, side_by_side
from instamap.data import writers
from instamap.data.particle_table import ParticleTable
from instamap.data.particles import Particles
from instamap.maps import fsc, mrc

RELION = "relion_reconstruct"
NEEDS = re.compile(r"needs +about ([\d.]+) GB, (\d+) s to read, ([\d.]+) s for a step")
READ = re.compile(r"read \d+ images in ([\d.]+) s")


def warm_up() -> None:
    """Compile what is compiled once per installation, so that no measured run does it."""
    with tempfile.TemporaryDirectory() as folder:
        run = measure([INSTAMAP, "demo", "--rigid", "-o", Path(folder) / "demo"])
    if run.code:
        sys.exit(f"`instamap demo --rigid` failed:\n{run.output}")


def each(
    folders: list[Path], seeds: list[int], one: Callable[[Path, Path, int], dict]
) -> list[dict]:
    """one(folder, work, seed) of every set and seed, in turn; `work` is an empty folder that goes
    afterwards.
    """
    results = []
    for folder in folders:
        for seed in seeds:
            with tempfile.TemporaryDirectory() as work:
                results.append(one(folder, Path(work), seed))
    return results


def by_instamap(folder: Path, out: Path, seed: int, *extra: str) -> Run:
    """`instamap reconstruct` of the set into the folder `out`: half1.mrc, half2.mrc, map.mrc,
    mask.mrc, fsc.csv, log.jsonl.
    """
    return measure(
        [
            INSTAMAP,
            "reconstruct",
            folder / "particles.star",
            "-o",
            out,
            "--seed",
            seed,
            "--force",
            *extra,
        ]
    )


def by_relion(folder: Path, out: Path, *, together: bool = False) -> Run | None:
    """Both halves by relion_reconstruct, one after the other or at the same time (`together`), into
    out/half1.mrc and half2.mrc, and their mean in map.mrc.

    None where it is not installed. It cannot read 16-bit floats: where it fails, it gets a copy of
    the set in 32 bits, outside the time.
    """
    if shutil.which(RELION) is None:
        return None
    out.mkdir(parents=True, exist_ok=True)
    run = _relion(folder, out, together)
    if run.code:
        with tempfile.TemporaryDirectory() as copy:
            run = _relion(
                sets.rewrite(folder, Path(copy), lambda particles, rows: particles.images(rows)),
                out,
                together,
            )
    if not run.code:
        (one, pixel_size), (two, _) = mrc.read(out / "half1.mrc"), mrc.read(out / "half2.mrc")
        mrc.write(out / "map.mrc", 0.5 * (one + two), pixel_size)
    return run


def _relion(folder: Path, out: Path, together: bool) -> Run:
    # it looks for images from where it runs
    def half(n: int) -> list:
        file = out.resolve() / f"half{n}.mrc"
        return [RELION, "--i", "particles.star", "--o", file, "--ctf", "--subset", n]

    if together:
        return side_by_side([half(1), half(2)], cwd=folder)
    return measure(half(1), cwd=folder) + measure(half(2), cwd=folder)


def relion_of_rows(folder: Path, particles: ParticleTable, rows: torch.Tensor, file: Path) -> Run:
    """relion_reconstruct on the particles `rows` "m" of the set in `folder`, into `file`."""
    file = file.resolve()
    subset = file.with_suffix(".star")
    number = torch.arange(len(particles))
    writers.write_latents(particles, number[:, None], subset, rows)
    # it looks for images from where it runs
    return measure([RELION, "--i", subset, "--o", file, "--ctf"], cwd=folder)


def score(tool: Path, what: str, *files: Path) -> dict:
    """What the outside tool says of maps ("map": result and truth, "halves": two half maps)."""
    done = subprocess.run(
        [sys.executable, str(tool), what, *[str(f) for f in files]], capture_output=True, text=True
    )
    if done.returncode:
        sys.exit(f"'{tool}' failed; give --score or set INSTAMAP_SCORE:\n{done.stderr}")
    return json.loads(done.stdout.splitlines()[-1])


def judge(tool: Path, folder: Path, out: Path, mask: Path | None) -> dict:
    """Scores of the maps in `out`: against the set's reference, against each other, and the
    resolution that the halves imply.

    The implied one is where the half maps' FSC, corrected for `mask` by phase randomisation, falls
    below 0.143; the mean map's FSC against the truth is then 0.5 if the halves are honest
    (Rosenthal & Henderson 2003): `map_0.5` should be no worse, so no larger, than `implied`.
    """
    truth = sets.reference(folder)
    found = {"half_auc": score(tool, "halves", out / "half1.mrc", out / "half2.mrc")["auc"]}
    if truth:
        half, whole = (score(tool, "map", out / f"{name}.mrc", truth) for name in ("half1", "map"))
        found |= {
            "auc": half["auc"],
            "half1_0.5": half["res_0.5"],
            "half1_0.143": half["res_0.143"],
        }
        found |= {"map_auc": whole["auc"], "map_0.5": whole["res_0.5"]}
    curve, box, pixel_size = corrected(out, mask)
    return {
        **found,
        "implied": first_below(curve, box, pixel_size, 0.143) if curve is not None else None,
    }


def corrected(out: Path, mask: Path | None) -> tuple[torch.Tensor | None, int, float]:
    """The half-map FSC that instamap judges by, or else the corrected one of the half maps in
    `mask`; box and pixel size in Å.

    instamap's is the lower one of `corrected` and `unbiased` in each shell.
    """
    (one, pixel_size), (two, _) = mrc.read(out / "half1.mrc"), mrc.read(out / "half2.mrc")
    curves = read_curves(out / "fsc.csv")
    if "corrected" in curves:
        return (
            torch.minimum(curves["corrected"], curves.get("unbiased", curves["corrected"])),
            len(one),
            pixel_size,
        )
    if mask is None or not mask.exists():
        return None, len(one), pixel_size
    return (
        fsc.phase_randomised(
            one, two, mrc.read(mask)[0], generator=torch.Generator().manual_seed(0)
        ),
        len(one),
        pixel_size,
    )


def read_curves(path: Path) -> dict[str, torch.Tensor]:
    """Curves by name "D//2+1" of an fsc.csv; none where there is no such file."""
    if not path.exists():
        return {}
    with path.open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    names = [name for name in rows[0] if name not in ("shell", "spatial_frequency", "resolution")]
    return {name: torch.tensor([float(row[name]) for row in rows]) for name in names}


def first_below(curve: torch.Tensor, box: int, pixel_size: float, threshold: float) -> float:
    """Å of the first shell below the threshold (not interpolated: the outside tool's rule, so that
    both can be compared).
    """
    below = (curve[1:] < threshold).nonzero()
    return box * pixel_size / (int(below[0]) + 1 if len(below) else box / 2)


def fits(out: Path) -> dict[str, dict]:
    """For each fit of log.jsonl: step and held_out of the best evaluation, the last step, and the
    seconds of the fit.
    """
    evaluations: dict[str, list[dict]] = {}
    for line in (out / "log.jsonl").read_text(encoding="utf-8").splitlines():
        one = json.loads(line)
        if "held_out" in one:
            evaluations.setdefault(one["fit"], []).append(one)
    found = {}
    for name, each in evaluations.items():
        best = max(each, key=lambda one: one["held_out"])
        last = each[-1]
        found[name] = {
            "step": best["step"],
            "held_out": best["held_out"],
            "steps": last["step"],
            "seconds": last["seconds"],
        }
    return found


def needs(run: Run, out: Path) -> dict[str, tuple[float, float]]:
    """What `instamap reconstruct` said that it would need, and what it took: GB, seconds to read,
    seconds of a step of all fits. Empty where it said nothing.
    """
    said = NEEDS.search(run.output)
    read = READ.search(run.output)
    if said is None or read is None or run.anonymous is None:
        return {}
    memory, reading, step = (float(word) for word in said.groups())
    steps = [one["seconds"] / one["steps"] for one in fits(out).values()]
    return {
        "GB": (memory, 1e-9 * run.anonymous),
        "seconds to read": (reading, float(read[1])),
        "seconds a step": (step, max(steps)),
    }


def held_out_images(folder: Path, out: Path) -> int:
    """How many images of a set the run in `out` held out of its fits."""
    share = tomllib.loads((out / "run.toml").read_text(encoding="utf-8"))["held_out"]
    return max(3, round(share * Particles.open(folder / "particles.star").count))


def gains(said: dict) -> dict:
    """Of a motion.json: whether motion was found, what it gives held-out particles over one rigid
    map (nats each, the fits' mean), and how far the halves' coordinates agree.
    """
    each = [fit["gain_over_rigid"] for fit in said["fits"].values()]
    return {
        "found": said["motion_found"],
        "gain": sum(each) / len(each),
        "agreement": said["agreement"],
    }
