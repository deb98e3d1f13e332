"""What a bending that was fitted to mini-batches has learned: coordinates of all particles and two
models, as a motion on disk.
"""

import json
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from instamap.data import noise
from instamap.data.particles import Particles
from instamap.fit.images import latents
from instamap.fit.objective import Evidence
from instamap.fourier.ctf import ctf
from instamap.model import Model
from instamap.motion import posterior
from instamap.motion.align_latents import related
from instamap.motion.kmeans import kmeans
from instamap.motion.motion_model import Half, Motion
from instamap.statistics.particle_statistics import Coarse, fewer_pixels, rescaled
from instamap.workflows.map import Data
from instamap.workflows.settings import Settings

STATES = 16
MOST = 64  # by which particles are placed: for one coordinate, and at most
COARSE = 10.0  # Å: pixel of the images by which they are placed


def write(settings: Settings, data: Data, models: dict[str, Model], folder: Path) -> Motion:
    """Write latents.npy, half1.pt and so on, and motion.json for the fitted `models` of
    data.evidence into an existing folder.

    Coordinates are those that the deformation gives its own half's images, each image by itself.
    Held-out ones have the network's, or, where coordinates come from a table in which they were
    never seen, their posterior mean under states at centres of clusters; by them the halves'
    coordinates are related. Call it only where all fits found a signal.
    """
    models = {
        name: models[name] for name in data.evidence
    }  # fits side by side may have ended in any order
    coarse = fewer_pixels(settings, data.particles, COARSE)
    variance = noise.estimate(coarse, seed=settings.seed, transfer=ctf)
    own = {
        name: latents(model, data.particles, data.evidence[name].rows)
        for name, model in models.items()
    }
    halves = {
        name: _half(model, own[name], coarse.box, settings.seed) for name, model in models.items()
    }
    judged = [_held_out(halves[name], data.evidence[name], coarse, variance) for name in models]
    agreement = None
    for name, two in list(zip(models, judged, strict=True))[1:]:
        turn, offset, agreement = _related(judged[0], two)
        halves[name] = replace(halves[name], turn=turn.float(), offset=offset.float())
    found = torch.zeros(data.particles.count, judged[0].shape[1], dtype=torch.float64)
    for name, half in halves.items():
        found[data.evidence[name].rows] = half.shared(own[name]).double()
    shared = [half.shared(z) for half, z in zip(halves.values(), judged, strict=True)]
    found[next(iter(data.evidence.values())).held_out] = torch.stack(shared).mean(0).double()
    motion = Motion(list(halves.values()), found, settings.record(data.engine))
    motion.save(folder)
    said = {"coordinates": found.shape[1], "agreement": agreement}
    (folder / "motion.json").write_text(json.dumps(said, indent=1) + "\n", encoding="utf-8")
    return motion


@torch.no_grad()
def _half(model: Model, z: Tensor, box: int, seed: int) -> Half:
    """With states at centres of clusters of its own particles' coordinates "m L"."""
    latent = z.shape[1]
    count = min(round(STATES * latent**1.5), MOST, len(z.unique(dim=0)))
    nodes = kmeans(z.double(), count, torch.Generator().manual_seed(seed)).unique(dim=0).float()
    maps = torch.stack([rescaled(model.raster(node[None]), box).float() for node in nodes])
    return Half(model, torch.eye(latent), torch.zeros(latent), nodes, maps)


def _held_out(half: Half, evidence: Evidence, coarse: Particles, variance: Tensor) -> Tensor:
    """Own coordinates "m L" of the held-out particles."""
    rows = evidence.held_out
    if getattr(half.model.deformation.options, "source", "table") == "image":
        return latents(half.model, evidence.particles, rows)
    return posterior.posterior(
        Coarse.read(coarse, rows, variance, rows), half.maps, half.nodes.double()
    )[0].float()


def _related(one: Tensor, two: Tensor) -> tuple[Tensor, Tensor, float | None]:
    """As `related`, for coordinates "m L" of any scale."""
    middles, scales = zip(
        *[(z.mean(0), z.std(0).clamp(min=1e-12)) for z in (one, two)], strict=True
    )
    turn, offset, agreement = related(
        *[(z - m) / s for z, m, s in zip((one, two), middles, scales, strict=True)]
    )
    if agreement is None:
        return turn, middles[1] - middles[0], None
    turn = scales[1][:, None] * turn / scales[0]
    return turn, middles[1] + scales[1] * offset - turn @ middles[0], agreement
