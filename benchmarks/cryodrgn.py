"""cryoDRGN (Zhong et al., Nature Methods 18, 176, 2021) as a program to compare with: a VAE trained in a given time.

It lives in a virtual environment of its own, `pip install torch cryodrgn==4.3.1`, and is only ever called as a command. Poses and CTFs are
converted by its own parse_pose_star and parse_ctf_star. Defaults, but for a latent of one dimension, networks that a CPU can train
(width, depth) with a learning rate for their size (its own, 1e-4, is meant for a width of 1024 and many more steps than fit here), no
mixed precision (it is for GPUs) and coordinates evaluated once, at the end. The time of an epoch is measured on some images first;
then as many epochs are trained, from scratch, as fit into the time, start and end included, at least one.

Signs: its CTF is the negative of RELION's, and by default it multiplies images by -1; both together leave a protein that is white in the
convention of RELION white. Its volumes are [z, y, x], their lattice of D + 1 frequencies cropped to D, the origin at D // 2. None of
this is taken for granted: contrast and offset of its volumes are measured against a consensus map. A wrong contrast is undone and
said; an offset is said.
"""

import pickle
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from benchmarks.programs import Run, measure
from instamap.data.particles import Particles
from instamap.maps import mrc

TRIAL = 1000  # images whose epoch is timed
EPOCH = re.compile(r"=====> Epoch: \d+ .*Finished in (\d+):(\d+):([\d.]+)")


class Failed(Exception):
    """A command of cryoDRGN ended with an error; the end of its output."""


@dataclass(frozen=True)
class Network:
    """Width and hidden layers of the encoder and of the decoder each, and Adam's learning rate."""

    width: int
    depth: int
    learning_rate: float


@dataclass(frozen=True)
class Fit:
    """A VAE trained in `folder`.

    latents "n 1": means of the posteriors. run: the training alone. epoch_seconds: mean of its epochs; expected: what was expected of them.
    """

    folder: Path
    latents: Tensor
    run: Run
    network: Network
    epochs: int
    epoch_seconds: float
    expected: float

    def numbers(self) -> dict:
        """What is kept of it beside the run."""
        kept = {"epochs": self.epochs, "epoch_seconds": self.epoch_seconds, "epoch_seconds_expected": self.expected}
        return {**kept, **vars(self.network)}


def fit(env: Path, particles: Path, work: Path, budget: float, network: Network, seed: int) -> Fit:
    """Train on the set in the folder `particles` for `budget` seconds by the clock. Raises Failed."""
    work.mkdir(parents=True, exist_ok=True)
    for command, file in (("parse_pose_star", "poses.pkl"), ("parse_ctf_star", "ctf.pkl")):
        _call(env, command, particles / "particles.star", "-o", work / file)
    count = Particles.open(particles / "particles.star").count
    per_image, start = _trial(env, particles, work, network, min(TRIAL, count))
    epochs = max(1, int((budget - start) / (per_image * count)))
    run = _train(env, particles, work, work / "fit", network, "--seed", seed, "-n", epochs)
    times = _epochs(run)
    with (work / "fit" / "z.pkl").open("rb") as file:
        latents = torch.from_numpy(np.asarray(pickle.load(file), dtype=np.float64)).reshape(count, -1)
    return Fit(work / "fit", latents, run, network, epochs, sum(times) / len(times), per_image * count)


def maps(env: Path, trained: Fit, places: Tensor, consensus: Path) -> tuple[list[Path], dict]:
    """Volumes at the coordinates "S 1" as MRC files, and what their mean has in common with the map in `consensus`. Raises Failed.

    correlation: Pearson's, before any change of sign. inverted: whether the volumes were multiplied by -1 for it. offset: whole voxels
    (z, y, x) by which the mean lies off the consensus, by the largest cross-correlation; not corrected.
    """
    common, pixel_size = mrc.read(consensus)
    here, out = trained.folder, trained.folder / "volumes"
    np.savetxt(here / "places.txt", places.numpy())
    what = [here / "weights.pkl", "-c", here / "config.yaml", "--zfile", here / "places.txt"]
    _call(env, "eval_vol", *what, "--Apix", pixel_size, "-o", out)
    files = sorted(out.glob("vol_*.mrc"))
    volumes = torch.stack([mrc.read(file)[0] for file in files])
    correlation, offset = compare(volumes.mean(0), common)
    sign = -1.0 if correlation < 0 else 1.0
    for file, volume in zip(files, volumes, strict=True):
        mrc.write(file, sign * volume, pixel_size)
    return files, {"correlation": correlation, "inverted": sign < 0, "offset": offset}


def compare(volume: Tensor, reference: Tensor) -> tuple[float, list[int]]:
    """Pearson's correlation of two maps "D D D", and the whole voxels by which the first must have been moved to be most like the second.

    The circular cross-correlation's largest size decides, so that a map with the wrong contrast is found where it is.
    """
    a, b = volume - volume.mean(), reference - reference.mean()
    cross = torch.fft.ifftn(torch.fft.fftn(a) * torch.fft.fftn(b).conj()).real
    peak, box = int(cross.abs().argmax()), len(cross)
    offset = [int(i) for i in np.unravel_index(peak, cross.shape)]
    return float(cross[0, 0, 0] / (a.norm() * b.norm())), [i - box if i >= box / 2 else i for i in offset]


def _trial(env: Path, particles: Path, work: Path, network: Network, count: int) -> tuple[float, float]:
    """Seconds of an epoch per image, and of everything but epochs, from one epoch of the first `count` images."""
    with (work / "some.pkl").open("wb") as file:
        pickle.dump(np.arange(count), file)
    run = _train(env, particles, work, work / "trial", network, "-n", 1, "--ind", work / "some.pkl")
    seconds = sum(_epochs(run))
    return seconds / count, run.seconds - seconds


def _train(env: Path, particles: Path, work: Path, out: Path, network: Network, *extra) -> Run:
    files = [particles / "particles.star", "--datadir", particles, "--poses", work / "poses.pkl", "--ctf", work / "ctf.pkl", "-o", out]
    size = [word for part in ("enc", "dec") for word in (f"--{part}-dim", network.width, f"--{part}-layers", network.depth)]
    how = ["--zdim", 1, *size, "--lr", network.learning_rate, "--no-amp", "--checkpoint", 0, "--no-analysis"]
    return _call(env, "train_vae", *files, *how, *extra)


def _call(env: Path, *command) -> Run:
    run = measure([env / "bin" / "cryodrgn", *command])
    if run.code:
        raise Failed(run.output[-800:])
    return run


def _epochs(run: Run) -> list[float]:
    """Seconds of each epoch, as the program says."""
    found = EPOCH.findall(run.output)
    if not found:
        raise Failed(f"no time of an epoch in its output: {run.output[-800:]}")
    return [3600 * int(hours) + 60 * int(minutes) + float(seconds) for hours, minutes, seconds in found]
