"""What is settled before statistics are gathered: particles, noise, sets, weights. It depends on
all particles, so shards agree on it.
"""

from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from instamap.data import noise
from instamap.data.particles import Particles
from instamap.errors import DataError, OptionError
from instamap.fourier.ctf import ctf
from instamap.geometry.symmetry import point_group
from instamap.maps import mask
from instamap.model import compose
from instamap.scene import Scene
from instamap.statistics import noise_refinement
from instamap.workflows.settings import Settings

# images, at least, are held out: of fewer, one strange image would decide when every fit stops
LEAST = 3


@dataclass(frozen=True)
class Survey:
    """Particles that were read and checked. scene: with the user's mask, if any. rows: row numbers
    of each set that is fitted; held_out: of the one that judges. symmetry "S 3 3": rotations, None
    for C1. weights "n": of every particle's log p, None for 1.
    """

    particles: Particles
    scene: Scene
    rows: dict[str, Tensor]
    held_out: Tensor
    symmetry: Tensor | None
    weights: Tensor | None


def survey(settings: Settings) -> Survey:
    """Read and check the particles, estimate the noise, draw the sets. Raises InstamapError."""
    particles = Particles.open(
        settings.particles, datadir=settings.datadir, preprocess=settings.preprocess
    )
    window = (
        mask.load(settings.mask, particles.box, particles.pixel_size) if settings.mask else None
    )
    rows, held_out = draw_sets(particles, settings)
    weights = None if settings.weights is None else particles.weights(settings.weights)
    for name, some in {**rows, "held_out": held_out}.items():
        if weights is not None and not weights[some].sum() > 0:
            raise DataError(
                f"{settings.weights} of '{particles.path}' is 0 for all {len(some)} particles of"
                f" {name}; weigh some of them"
            )
    spectra = noise.estimate(particles, seed=settings.seed, transfer=ctf)
    scene = Scene(
        box=particles.box,
        pixel_size=particles.pixel_size,
        count=particles.count,
        premultiplied=particles.premultiplied,
        mask=window,
        noise_variance=spectra.float(),
        bodies=_bodies(settings, particles),
    )
    symmetry = None if settings.symmetry == "C1" else point_group(settings.symmetry)
    likelihood = compose(settings.parts, scene).likelihood
    if likelihood.refines:
        spectra = noise_refinement.refine(
            particles, torch.cat(list(rows.values())), likelihood, scene, symmetry=symmetry
        )
        scene = replace(scene, noise_variance=spectra)
    return Survey(particles, scene, rows, held_out, symmetry, weights)


def _bodies(settings: Settings, particles: Particles) -> torch.Tensor | None:
    """Masks "M D D D" of the bodies that the deformation names, if it does."""
    files = getattr(settings.parts["deformation"].options, "bodies", None)
    return (
        torch.stack(
            [mask.load(Path(f), particles.box, particles.pixel_size) for f in files.split(",")]
        )
        if files
        else None
    )


def draw_sets(particles: Particles, settings: Settings) -> tuple[dict[str, Tensor], Tensor]:
    """Row numbers of each fit and of the held-out set, drawn with the seed; rows that stay together
    (`Particles.units`) are drawn together.

    Raises DataError where a set would be empty, or an image in two of them; OptionError where
    nothing is to be held out.
    """
    if not settings.held_out > 0:
        raise OptionError(
            f"held_out is {settings.held_out:g}, and nothing would tell a fit when to stop; give a"
            " share such as 0.05"
        )
    unit = particles.units(settings.together)
    order = torch.randperm(
        int(unit.max()) + 1, generator=torch.Generator().manual_seed(settings.seed)
    )
    enough = 1 + int((torch.bincount(unit)[order].cumsum(0) < LEAST).sum())
    out = torch.isin(unit, order[: max(enough, round(settings.held_out * len(order)))])
    half = (
        particles.split(settings.seed, settings.together)
        if settings.halves
        else torch.zeros(particles.count)
    )
    names = ("half1", "half2") if settings.halves else ("map",)
    rows = {name: ((half == i) & ~out).nonzero()[:, 0] for i, name in enumerate(names)}
    for name, some in rows.items():
        if not len(some):
            raise DataError(
                f"no particles are left for {name} of the {particles.count} in"
                f" '{settings.particles}'; give more, mend rlnRandomSubset, or add --no-halves"
            )
    return rows, out.nonzero()[:, 0]
