"""Half maps of pure noise: do they agree by more than chance, and does the program say that there is nothing?

    python -m benchmarks.null --data T [--only NAME ...] [--mask FILE.mrc] [--make PATH] [--seeds 0 1 2] [--out FILE.json]

Each seed draws white Gaussian noise, of variance one, in place of a set's images and keeps its poses and contrast transfer (multiplying
the noise by it where the set's images are). Every representation then runs as on real data, mask and all, as does relion_reconstruct,
whose half maps owe nothing to a prior: what they show in the same mask (that of the first representation) is the mask's doing.

NATS is the gain of all held-out images together over an empty map, the largest of all looks, halves and seeds. It is the logarithm of a
likelihood ratio whose mean is 1 for noise, so one look exceeds x by chance with a probability of at most e^-x, and the best of n looks
with n e^-x: a few nats above 0 mean nothing. SAYS SO: runs that say "no signal" of at least one half.

MASKED and CORRECTED are max |FSC| over the shells from 3 on, in the mask that was used, before and after correction for it by phase
randomisation: the largest of D/2 - 2 random numbers. MEAN is the corrected curve's mean over those shells and all seeds, where a bias that
every shell has shows sooner; CHANCE is what the largest number would be if the map were white noise in the mask, two standard deviations of
its weakest shell, 2 / sqrt(components x share of the box that the mask leaves). A map smoothed by a prior has fewer independent components.
"""

import tempfile
from pathlib import Path

import torch
from torch import Tensor

from benchmarks import runs, sets
from benchmarks.common import environment
from benchmarks.options import parser
from benchmarks.report import median, number, save, show, table
from instamap.data.particles import Particles
from instamap.forward.ctf import ctf
from instamap.geometry import grids
from instamap.maps import fsc, mrc
from instamap.registry import default

FIRST = 3  # shell from which curves are looked at: the mask's own transform fills those below
HEAD = ["SET", "REPRESENTATION", "NATS/IMAGE", "NATS", "SAYS SO", "RAW", "MASKED", "CORRECTED", "MEAN", "CHANCE", "FAILED"]
RELION = "(relion_reconstruct)"


def noise(seed: int):
    """Images of noise for `sets.rewrite`."""
    generator = torch.Generator().manual_seed(seed)

    def images(particles: Particles, rows: Tensor) -> Tensor:
        white = torch.randn(len(rows), particles.box, particles.box, generator=generator)
        if not particles.premultiplied:
            return white
        transfer = ctf(particles.views.optics[rows], particles.box, particles.pixel_size).float()
        return torch.fft.irfft2(torch.fft.rfft2(white) * transfer, s=white.shape[1:])

    return images


def chance(mask: Tensor) -> float:
    """Two standard deviations of the FSC of white noise in `mask` "D D D", in the shell of the fewest components from FIRST on."""
    size = torch.bincount(grids.shells(len(mask), 3).flatten())[FIRST : len(mask) // 2 + 1]
    share = mask.square().sum() ** 2 / (mask.numel() * mask.pow(4).sum())
    return 2 / float(size.min() * share) ** 0.5


def one(data: Path, name: str, seed: int, out: Path, mask: Path) -> dict | None:
    """One representation, or relion_reconstruct, on noise that was made before; its curves in the mask."""
    if name == RELION:
        run = runs.by_relion(data, out)
    else:
        given = ("--mask", str(mask)) if mask.exists() else ()
        run = runs.by_instamap(data, out, seed, "--representation", name, *given)
    if run is None:
        return None
    result = {"representation": name, "seed": seed, "code": run.code, "says": "no signal" in run.output}
    if run.code:
        return {**result, "output": run.output[-800:]}
    if name != RELION:
        result["held_out"] = [fit["held_out"] for fit in runs.fits(out).values()]
        result["nats"] = [each * runs.held_out_images(data, out) for each in result["held_out"]]
    used = mask if mask.exists() else out / "mask.mrc"
    return {**result, **curves(out, mrc.read(used)[0] if used.exists() else None)}


def curves(out: Path, window: Tensor | None) -> dict:
    """Raw, masked and corrected FSC per shell, and what a curve of white noise may reach."""
    if not (out / "half1.mrc").exists():
        return {}
    (one, _), (two, _) = mrc.read(out / "half1.mrc"), mrc.read(out / "half2.mrc")
    found = {"raw": fsc.fsc(one, two).tolist()}
    if window is None:
        return found
    corrected = fsc.phase_randomised(one, two, window, generator=torch.Generator().manual_seed(0))
    return {**found, "masked": fsc.fsc(one, two, window).tolist(), "corrected": corrected.tolist(), "chance": chance(window)}


def row(name: str, representation: str, results: list[dict]) -> list[str]:
    """The worst of all seeds, but for the mean."""
    some = [r for r in results if (r["set"], r["representation"]) == (name, representation)]
    worst = lambda key: max((max(abs(v) for v in r[key][FIRST:]) for r in some if key in r), default=None)
    best = lambda key: number(max((v for r in some for v in r.get(key, [])), default=None), "+.2g")
    every = [v for r in some for v in r.get("corrected", [])[FIRST:]]
    says = "-" if representation == RELION else f"{sum(r['says'] for r in some)} of {len(some)}"
    mean = sum(every) / len(every) if every else None
    largest = [number(worst(key), ".3f") for key in ("raw", "masked", "corrected")]
    level = number(median(r.get("chance") for r in some), ".3f")
    failed = str(sum(r["code"] != 0 for r in some))
    return [name, representation, best("held_out"), best("nats"), says, *largest, number(mean, "+.4f"), level, failed]


def main() -> None:
    add = parser(__doc__, score=False)
    add.add_argument("--only", nargs="+", help="of the representations  [default: all]")
    add.add_argument("--mask", type=Path, help="for all of them  [default: each run finds its own]")
    options, where = add.parse_args(), environment()
    names = [*(options.only or [part.name for part in default().parts("representation")]), RELION]
    folders, results = [sets.find(folder, options.make) for folder in options.data], []
    for seed in options.seeds:
        for folder in folders:
            with tempfile.TemporaryDirectory() as place:
                work = Path(place)
                data = sets.rewrite(folder, work / "noise", noise(seed))
                for name in names:
                    mask = options.mask or (work / names[0] / "mask.mrc" if name == RELION else work / "none")
                    found = one(data, name, seed, work / name, mask)
                    results += [{"set": folder.resolve().name, **found}] if found else []
    show(table(HEAD, [row(folder.resolve().name, name, results) for folder in folders for name in names]))
    for said in dict.fromkeys(r["output"] for r in results if "output" in r):
        show(f"\n{said}")
    save(options.out, "null", where, results, sets=[sets.describe(folder) for folder in folders], seeds=options.seeds)


if __name__ == "__main__":
    main()
