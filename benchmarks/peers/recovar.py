"""recovar (Gilles and Singer, PNAS 122, e2419140122, 2025) as a program to compare with: principal
components of how particles differ, and maps by regression on the coordinates along them.

It lives in a virtual environment of its own, `pip install recovar==1.0.5`, and is only ever called
as commands: its licence is for academic use. Defaults, but for one number of components (its own
are five numbers, one after the other), `--accept-cpu`, and no correction of contrast, which
instamap's own runs decide by held-out images. It has no limit of time: it takes what it takes.

Contrast and offset of its maps are measured against a consensus map; a wrong contrast is undone and
said, an offset is said.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from benchmarks.lib.programs import Run, measure
from benchmarks.peers.cryodrgn import Failed, compare
from instamap.maps import mrc

MASK = "from_halfmaps"  # which it finds itself


@dataclass(frozen=True)
class Fit:
    """What it found in `folder`: coordinates "n L" of the particles, and the run."""

    folder: Path
    latents: Tensor
    run: Run


def fit(env: Path, particles: Path, work: Path, components: int) -> Fit:
    """Mean, components and coordinates of the set in the folder `particles`. Raises Failed."""
    out = work / "fit"
    words = [particles / "particles.star", "--datadir", particles, "-o", out]
    words += ["--mask", MASK, "--zdim", components, "--no-correct-contrast", "--accept-cpu"]
    run = _call(env, "pipeline", *words)
    file = out / "model" / f"zdim_{components}" / "latent_coords.npy"
    return Fit(out, torch.from_numpy(np.load(file)).double(), run)


def maps(env: Path, found: Fit, places: Tensor, consensus: Path) -> tuple[list[Tensor], Run, dict]:
    """Maps at the coordinates "S L", the run that made them, and what their mean has in common with
    the map in `consensus`. Raises Failed.
    """
    listed = found.folder / "places.txt"
    np.savetxt(listed, places.numpy())
    out = found.folder / "states"
    run = _call(env, "compute_state", found.folder, "-o", out, "--latent-points", listed)
    files = [out / f"state{number:03d}.mrc" for number in range(len(places))]
    volumes = torch.stack([mrc.read(file)[0] for file in files])
    correlation, offset = compare(volumes.mean(0), mrc.read(consensus)[0])
    sign = -1.0 if correlation < 0 else 1.0
    checks = {"correlation": correlation, "inverted": sign < 0, "offset": offset}
    return list(sign * volumes), run, checks


def _call(env: Path, *command) -> Run:
    run = measure([env / "bin" / "recovar", *command])
    if run.code:
        raise Failed(run.output[-800:])
    return run
