"""Poses that are off, and what correcting them wins back: half maps from true poses and from wrong
ones, as given and with `rigid`.

    python -m benchmarks.accuracy.poses --data T [--make PATH] [--score PATH] [--seeds 0]
        [--angle 2] [--shift 1] [--per-axis] [--out FILE.json]

Each particle is turned about a random axis and moved in the image by normally distributed amounts:
--angle degrees and --shift pixels are the root mean squares of the whole angle and of the length of
the shift, or with --per-axis those about and along each axis. AUC is that of half 1 against the
truth by the outside tool; won back is (wrong, rigid - wrong) / (true - wrong).
"""

import math
import tempfile
from pathlib import Path

import pandas as pd
import starfile
import torch

from benchmarks.lib import runs, sets
from benchmarks.lib.common import environment
from benchmarks.lib.options import parser
from benchmarks.lib.report import number, save, show, table
from instamap.data.formats import star
from instamap.geometry import rotations

HEAD = ["SET", "SEED", "POSES", "AUC", "HALF AUC", "ANGLE", "SHIFT", "SECONDS", "WON BACK"]
REFINED = "particles_refined.star"


def perturb(folder: Path, out: Path, angle: float, shift: float, seed: int) -> None:
    """Write the set's STAR file to the folder `out`, beside a link to its images, with errors of
    deviation `angle` (degrees, about each axis) and `shift` (Å, along each).
    """
    generator = torch.Generator().manual_seed(seed)
    known = star.read(folder / "particles.star")
    tables = starfile.read(folder / "particles.star", always_dict=True)
    count = len(known)
    particles = tables["particles"]
    turn = rotations.from_rotvec(
        torch.randn(count, 3, generator=generator, dtype=torch.float64) * math.radians(angle)
    )
    angles = torch.rad2deg(rotations.to_euler(turn @ known.rotation))
    origin = known.origin + torch.randn(count, 2, generator=generator, dtype=torch.float64) * shift
    for i, name in enumerate(("Rot", "Tilt", "Psi")):
        particles[f"rlnAngle{name}"] = angles[:, i].numpy()
    for i, name in enumerate(("rlnOriginXAngst", "rlnOriginYAngst")):
        particles[name] = origin[:, i].numpy()
    out.mkdir(parents=True)
    starfile.write(
        {
            name: t if isinstance(t, pd.DataFrame) else pd.DataFrame([t])
            for name, t in tables.items()
        },
        out / "particles.star",
    )
    for stack in folder.glob("*.mrcs"):
        (out / stack.name).symlink_to(stack.resolve())


def errors(truth: Path, given: Path) -> tuple[float, float]:
    """Root mean square of the angle (degrees) and of the length of the shift (Å) between the poses
    of two STAR files.
    """
    one = star.read(truth)
    two = star.read(given)
    a, b = one.rotation, two.rotation
    angle = rotations.to_rotvec(a.mT @ b).norm(dim=1)
    return float(torch.rad2deg(angle).square().mean().sqrt()), float(
        (one.origin - two.origin).square().sum(1).mean().sqrt()
    )


def turn(folder: Path, work: Path, angle: float, shift: float, seed: int, tool: Path) -> list[dict]:
    """All four."""
    perturb(folder, work / "set", angle, shift, seed)
    truth = sets.reference(folder)
    results = []
    rigid = ("--deform", "rigid")
    cases = {
        "true": (folder,),
        "true, rigid": (folder, *rigid),
        "wrong": (work / "set",),
        "wrong, rigid": (work / "set", *rigid),
    }
    for name, (source, *extra) in cases.items():
        out = work / name
        run = runs.by_instamap(source, out, seed, *extra)
        result = {"set": folder.resolve().name, "seed": seed, "poses": name, **run.numbers()}
        if run.code:
            show(f"{name} failed:\n{run.output[-800:]}")
            results.append({**result, "failed": run.output[-800:]})
            continue
        poses = out / REFINED if (out / REFINED).exists() else source / "particles.star"
        left = dict(zip(("angle", "shift"), errors(folder / "particles.star", poses), strict=True))
        scores = {
            "auc": runs.score(tool, "map", out / "half1.mrc", truth)["auc"],
            "half_auc": runs.score(tool, "halves", out / "half1.mrc", out / "half2.mrc")["auc"],
        }
        results.append({**result, **left, **scores, "output": run.output[-3000:]})
    auc = {r["poses"]: r.get("auc") for r in results}
    if all(v is not None for v in auc.values()):
        results[-1]["won_back"] = (auc["wrong, rigid"] - auc["wrong"]) / (
            auc["true"] - auc["wrong"]
        )
    return results


def main() -> None:
    made = parser(__doc__, seeds=(0,))
    made.add_argument("--angle", type=float, default=2.0, help="degrees  [default: 2]")
    made.add_argument("--shift", type=float, default=1.0, help="pixels  [default: 1]")
    made.add_argument(
        "--per-axis", action="store_true", help="both are those about and along each axis"
    )
    options = made.parse_args()
    where = environment()
    results = []
    each = (1.0, 1.0) if options.per_axis else (1 / math.sqrt(3), 1 / math.sqrt(2))
    runs.warm_up()
    for folder in [sets.find(f, options.make) for f in options.data]:
        pixel = float(star.read(folder / "particles.star").pixel_size[0])
        for seed in options.seeds:
            with tempfile.TemporaryDirectory() as work:
                results += turn(
                    folder,
                    Path(work),
                    options.angle * each[0],
                    options.shift * each[1] * pixel,
                    seed,
                    options.score,
                )
    form = {
        "auc": ".4f",
        "half_auc": ".4f",
        "angle": ".2f",
        "shift": ".2f",
        "seconds": ".0f",
        "won_back": ".0%",
    }
    rows = [
        [r["set"], r["seed"], r["poses"], *[number(r.get(k), f) for k, f in form.items()]]
        for r in results
    ]
    show(table(HEAD, rows))
    save(
        options.out,
        "poses",
        where,
        results,
        angle=options.angle,
        shift=options.shift,
        per_axis=options.per_axis,
    )


if __name__ == "__main__":
    main()
