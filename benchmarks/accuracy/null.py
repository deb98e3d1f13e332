"""Half maps of pure noise: do they agree by more than chance, and does the program say that there
is nothing?

    python -m benchmarks.accuracy.null --data T [--only NAME ...] [--mask FILE.mrc]
        [--drawn-steps 60] [--make PATH] [--seeds 0 1 2] [--out F.json]

Each seed draws white Gaussian noise, of variance one, in place of a set's images and keeps its
poses and contrast transfer (multiplying the noise by it where the set's images are). Every
representation then runs as on real data, mask and all, as does relion_reconstruct, whose half maps
owe nothing to a prior: what they show in the same mask (that of the first representation) is the
mask's doing.

NATS is the gain of all held-out images together over an empty map, the largest of all evaluations,
halves and seeds. It is the logarithm of a likelihood ratio whose mean is 1 for noise, so one
evaluation exceeds x by chance with a probability of at most e^-x, and the best of n evaluations
with n e^-x: a few nats above 0 mean nothing. SAYS SO: runs that say "no signal" of at least one
half. WRITTEN: of their half maps, max |FSC| over the shells from 3 on; those that say so are empty,
and 0.

DRAWN are the maps that the program would have drawn had nobody judged them: after --drawn-steps
steps of each half's fit, or at its best evaluation (0). Max |FSC| over the shells from 3 on: DRAWN
is of levelled maps in the mask, CORRECTED for it by phase randomisation, UNBIASED by direct
inversions of both halves (`instamap.maps.fsc.cross`). MEAN is the plain curve's over those shells
and all seeds: a prior that both halves share shows there first, as a positive number. CHANCE is two
standard deviations of white noise in the mask, in its weakest shell; a map smoothed by a prior has
fewer independent components, and one of D/2 - 2 shells exceeds two easily.
"""

import tempfile
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.lib import runs, sets
from benchmarks.lib.common import environment
from benchmarks.lib.options import parser
from benchmarks.lib.report import markdown, median, number, save, show, table
from instamap.data.particles import Particles
from instamap.fitting import loop
from instamap.fitting.objective import Objective
from instamap.fourier.ctf import ctf
from instamap.maps import fsc, mrc
from instamap.maps import mask as masks
from instamap.model import compose
from instamap.plugin.choice import load_class
from instamap.progress import Evaluation, Progress
from instamap.statistics import initial_map
from instamap.workflows.choose import resolve
from instamap.workflows.map import SEEDS_PER_RUN
from instamap.workflows.prepare import Prepared, prepare
from instamap.workflows.settings import Settings

FIRST = 3  # shell from which curves are looked at: the mask's own transform fills those below
NAMES = ("hash-grid", "voxel", "frequency", "one-blob", "spherical-harmonics", "triangle-wave")
HEAD = [
    "SET",
    "REPRESENTATION",
    "NATS/IMAGE",
    "NATS",
    "SAYS SO",
    "WRITTEN",
    "DRAWN",
    "CORRECTED",
    "UNBIASED",
    "MEAN",
    "CHANCE",
    "FAILED",
]
RELION = "(relion_reconstruct)"
NEVER = 10**9


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
    """Two standard deviations of the FSC of white noise in `mask` "D D D", in the weakest shell
    from FIRST on.
    """
    return 2 / float(fsc.independent_components(mask)[FIRST:].min()) ** 0.5


def one(data: Path, name: str, seed: int, out: Path, mask: Path | None, steps: int) -> dict:
    """One representation on noise that was made before: what the program writes, and what it would
    have drawn.
    """
    run = runs.by_instamap(
        data, out, seed, "--representation", name, *(("--mask", str(mask)) if mask else ())
    )
    result = {
        "representation": name,
        "seed": seed,
        "code": run.code,
        "says": "no signal" in run.output,
    }
    if run.code:
        return {**result, "output": run.output[-800:]}
    result["held_out"] = [fit["held_out"] for fit in runs.fits(out).values()]
    result["nats"] = [each * runs.held_out_images(data, out) for each in result["held_out"]]
    halves = [mrc.read(out / f"half{n}.mrc")[0] for n in (1, 2)]
    result["written"] = curves(*halves, mrc.read(mask or out / "mask.mrc")[0])
    return {**result, "drawn": drawn(data, name, seed, mask, steps)}


def by_relion(data: Path, seed: int, out: Path, mask: Path) -> dict | None:
    """relion_reconstruct on the same noise; its maps are drawn, whatever they show."""
    run = runs.by_relion(data, out)
    if run is None or not mask.exists():
        return None
    result = {"representation": RELION, "seed": seed, "code": run.code, "says": False}
    if run.code:
        return {**result, "output": run.output[-800:]}
    return {
        **result,
        "drawn": curves(*(mrc.read(out / f"half{n}.mrc")[0] for n in (1, 2)), mrc.read(mask)[0]),
    }


def drawn(data: Path, name: str, seed: int, mask: Path | None, steps: int) -> dict:
    """Curves of the half maps after so many steps, or at their best evaluation (0), signal or not;
    the automatic mask is that of the program.
    """
    settings = Settings(
        particles=data / "particles.star", seed=seed, mask=mask, representation=name
    )
    settings = resolve(settings)
    if steps:
        endless = replace(settings.objective.options, steps=steps, patience=NEVER)
        objective = replace(settings.objective, options=endless)
        settings = replace(settings, objective=objective)
    prepared = prepare(settings)
    scene = prepared.scene
    halves = [_half(settings, prepared, half, steps) for half in prepared.fits]
    sphere = masks.sphere(scene.box, scene.pixel_size, scene.radius, 0.0)
    raw = [initial_map.solve(fit.fitted, sphere) for fit in prepared.fits.values()]
    unbiased = fsc.cross(*halves, *raw, scene.mask)["unbiased"]
    return {**curves(*halves, scene.mask), "unbiased": unbiased.tolist()}


class _LastMap(Progress):
    """Keeps the map of a fit's last evaluation, before the fit goes back to the best one."""

    def __init__(self, objective: Objective):
        self.objective = objective
        self.map: Tensor | None = None

    def evaluated(self, fit: str, evaluation: Evaluation, steps: int) -> None:
        self.map = self.objective.map()


def _half(settings: Settings, prepared: Prepared, half: str, steps: int) -> Tensor:
    """A half map with the random numbers that the program has for it, but without its verdict."""
    seed = settings.seed * SEEDS_PER_RUN + list(prepared.fits).index(half)
    model = compose(settings.parts, prepared.scene, seed)
    objective_class = load_class("objective", settings.objective.name)
    objective = objective_class(settings.objective.options, model, prepared.fits[half])
    last = _LastMap(objective)
    generator = torch.Generator().manual_seed(seed)
    loop.optimise(model, objective, generator=generator, progress=last)
    density = last.map if steps else objective.map()
    return density * (prepared.scene.mask > 0)


def curves(one: Tensor, two: Tensor, window: Tensor) -> dict:
    """FSC per shell of levelled half maps in the mask, the same corrected for it, and what white
    noise may reach.
    """
    corrected = fsc.phase_randomised(one, two, window, generator=torch.Generator().manual_seed(0))
    plain = fsc.fsc(fsc.levelled(one, window), fsc.levelled(two, window))
    return {"plain": plain.tolist(), "corrected": corrected.tolist(), "chance": chance(window)}


def row(name: str, representation: str, results: list[dict]) -> list[str]:
    """The worst of all seeds, but for the mean."""
    some = [r for r in results if (r["set"], r["representation"]) == (name, representation)]

    def worst(of, key):
        return max(
            (abs(v) for r in some if key in r.get(of, {}) for v in r[of][key][FIRST:]), default=None
        )

    def best(key):
        return number(max((v for r in some for v in r.get(key, [])), default=None), "+.2g")

    every = [v for r in some if "drawn" in r for v in r["drawn"]["plain"][FIRST:]]
    says = "-" if representation == RELION else f"{sum(r['says'] for r in some)} of {len(some)}"
    largest = [
        number(worst(*key), ".3f")
        for key in (
            ("written", "plain"),
            *(("drawn", k) for k in ("plain", "corrected", "unbiased")),
        )
    ]
    mean = number(sum(every) / len(every) if every else None, "+.4f")
    level = number(median(r["drawn"]["chance"] for r in some if "drawn" in r), ".3f")
    failed = str(sum(r["code"] != 0 for r in some))
    return [
        name,
        representation,
        best("held_out"),
        best("nats"),
        says,
        *largest,
        mean,
        level,
        failed,
    ]


def main() -> None:
    add = parser(__doc__, score=False)
    add.add_argument(
        "--only",
        nargs="+",
        default=list(NAMES),
        help="of the representations  [default: the six that come with instamap]",
    )
    add.add_argument("--mask", type=Path, help="for all of them  [default: each run finds its own]")
    add.add_argument(
        "--drawn-steps",
        type=int,
        default=60,
        help="of maps that nobody judged; 0: best evaluation  [default: 60]",
    )
    add.add_argument("--markdown", action="store_true", help="print the table as Markdown")
    options = add.parse_args()
    where = environment()
    names = [*options.only, RELION]
    folders = [sets.find(folder, options.make) for folder in options.data]
    results = []
    for seed in options.seeds:
        for folder in folders:
            with tempfile.TemporaryDirectory() as place:
                work = Path(place)
                data = sets.rewrite(folder, work / "noise", noise(seed))
                for name in options.only:
                    results.append(
                        {
                            "set": folder.resolve().name,
                            **one(data, name, seed, work / name, options.mask, options.drawn_steps),
                        }
                    )
                found = by_relion(
                    data, seed, work / "relion", options.mask or work / options.only[0] / "mask.mrc"
                )
                results += [{"set": folder.resolve().name, **found}] if found else []
    rows = [row(folder.resolve().name, name, results) for folder in folders for name in names]
    show(markdown(HEAD, rows) if options.markdown else table(HEAD, rows))
    for said in dict.fromkeys(r["output"] for r in results if "output" in r):
        show(f"\n{said}")
    made = [sets.describe(folder) for folder in folders]
    save(
        options.out,
        "null",
        where,
        results,
        sets=made,
        seeds=options.seeds,
        drawn_steps=options.drawn_steps,
    )


if __name__ == "__main__":
    main()
