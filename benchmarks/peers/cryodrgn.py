"""cryoDRGN (Zhong et al., Nature Methods 18, 176, 2021) as a program to compare with: a VAE trained
in a given time.

It lives in a virtual environment of its own, `pip install torch cryodrgn==4.3.1`, and is only ever
called as a command. Poses and CTFs are converted by its own parse_pose_star and parse_ctf_star.
Defaults, but for the dimensions of its latent, networks that a CPU can train (width, depth) with a
learning rate for their size (its own, 1e-4, is meant for a width of 1024 and many more steps than
fit here), no mixed precision (it is for GPUs) and coordinates evaluated at the end alone. The time
of an epoch is measured on some images first; then as many epochs are trained, from scratch, as fit
into the time, start and end included, at least one; and as many more from there as still fit, where
epochs were faster than expected.

Signs: its CTF is the negative of RELION's, and by default it multiplies images by -1; both together
leave a protein that is white in the convention of RELION white. Its volumes are [z, y, x], their
lattice of D + 1 frequencies cropped to D, the origin at D // 2. None of this is taken for granted:
contrast and offset of its volumes are measured against a consensus map. A wrong contrast is undone
and said; an offset is said.
"""

import pickle
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from benchmarks.lib.programs import Run, measure
from instamap.data.particles import Particles
from instamap.maps import mrc

TRIAL = 1000  # images whose epoch is timed
EPOCH = re.compile(r"=====> Epoch: \d+ .*Finished in (\d+):(\d+):([\d.]+)")


class Failed(Exception):
    """A command of cryoDRGN ended with an error; the end of its output."""


@dataclass(frozen=True)
class Settings:
    """width, depth: hidden layers of the encoder and of the decoder. learning_rate: Adam's.

    box: to which its `downsample` crops the images first; 0 for their own. Maps then hold nothing
    beyond that box's Nyquist frequency. latent: dimensions of its coordinates.
    """

    width: int
    depth: int
    learning_rate: float
    box: int = 0
    latent: int = 1


@dataclass(frozen=True)
class Fit:
    """A VAE trained in `folder`.

    latents "n L": means of the posteriors. run: the training alone. epoch_seconds: mean of its
    epochs; expected: what was expected of them.
    """

    folder: Path
    latents: Tensor
    run: Run
    settings: Settings
    epochs: int
    epoch_seconds: float
    expected: float

    def numbers(self) -> dict:
        """What is kept of it beside the run."""
        kept = {
            "epochs": self.epochs,
            "epoch_seconds": self.epoch_seconds,
            "epoch_seconds_expected": self.expected,
        }
        return {**kept, **vars(self.settings)}


def fit(
    env: Path, particles: Path, work: Path, budget: float, settings: Settings, seed: int
) -> Fit:
    """Train on the set in the folder `particles` for `budget` seconds by the clock, its conversion
    not counted. Raises Failed.
    """
    work.mkdir(parents=True, exist_ok=True)
    inputs = [
        *_images(env, particles, work, settings.box),
        "--poses",
        work / "poses.pkl",
        "--ctf",
        work / "ctf.pkl",
    ]
    for command, file in (("parse_pose_star", "poses.pkl"), ("parse_ctf_star", "ctf.pkl")):
        _call(env, command, particles / "particles.star", "-o", work / file)
    count = Particles.open(particles / "particles.star").count
    per_image, start = _trial(env, inputs, work, settings, min(TRIAL, count))
    times = [per_image * count]
    run = None
    out = work / "fit"
    more = max(1, int((budget - start) / times[0]))
    epochs = 0
    while more > 0:
        resumed = ["--load", out / "weights.pkl"] if run else []
        once = _train(env, inputs, out, settings, "--seed", seed, "-n", epochs + more, *resumed)
        run = run + once if run else once
        epochs = epochs + more
        times = _epochs(run)
        more = int((budget - run.seconds - start) / (sum(times) / len(times)))
    with (out / "z.pkl").open("rb") as file:
        latents = torch.from_numpy(np.asarray(pickle.load(file), dtype=np.float64)).reshape(
            count, -1
        )
    return Fit(out, latents, run, settings, epochs, sum(times) / len(times), per_image * count)


def maps(env: Path, trained: Fit, places: Tensor, consensus: Path) -> tuple[list[Path], dict]:
    """Volumes at the coordinates "S L" as MRC files, and what their mean has in common with the map
    in `consensus`. Raises Failed.

    correlation: Pearson's, before any change of sign. inverted: whether the volumes were multiplied
    by -1 for it. offset: whole voxels (z, y, x) by which the mean lies off the consensus, by the
    largest cross-correlation; not corrected.
    """
    common, pixel_size = mrc.read(consensus)
    here = trained.folder
    out = trained.folder / "volumes"
    np.savetxt(here / "places.txt", places.numpy())
    what = [here / "weights.pkl", "-c", here / "config.yaml", "--zfile", here / "places.txt"]
    _call(env, "eval_vol", *what, "--Apix", pixel_size, "-o", out)
    files = sorted(out.glob("vol_*.mrc"))
    volumes = torch.stack([enlarge(mrc.read(file)[0], len(common)) for file in files])
    correlation, offset = compare(volumes.mean(0), common)
    sign = -1.0 if correlation < 0 else 1.0
    for file, volume in zip(files, volumes, strict=True):
        mrc.write(file, sign * volume, pixel_size)
    return files, {"correlation": correlation, "inverted": sign < 0, "offset": offset}


def compare(volume: Tensor, reference: Tensor) -> tuple[float, list[int]]:
    """Pearson's correlation of two maps "D D D", and the whole voxels (z, y, x) by which the first
    lies off the second.

    The latter is where their circular cross-correlation is largest in size, so that a map of the
    wrong contrast is found as well.
    """
    a = volume - volume.mean()
    b = reference - reference.mean()
    cross = torch.fft.ifftn(torch.fft.fftn(a) * torch.fft.fftn(b).conj()).real
    peak = int(cross.abs().argmax())
    box = len(cross)
    offset = [int(i) for i in np.unravel_index(peak, cross.shape)]
    return float(cross[0, 0, 0] / (a.norm() * b.norm())), [
        i - box if i >= box / 2 else i for i in offset
    ]


def enlarge(volume: Tensor, box: int) -> Tensor:
    """A map "n n n" on the finer lattice of `box` voxels over the same edge, with nothing beyond
    its own Nyquist frequency.
    """
    n = len(volume)
    low = (box // 2) - (n // 2)
    fourier = torch.zeros((box,) * 3, dtype=torch.complex64)
    inside = slice(low, low + n)
    fourier[inside, inside, inside] = torch.fft.fftshift(
        torch.fft.fftn(torch.fft.ifftshift(volume))
    )
    return torch.fft.fftshift(torch.fft.ifftn(torch.fft.ifftshift(fourier))).real * (box / n) ** 3


def _images(env: Path, particles: Path, work: Path, box: int) -> list:
    """Where its training finds the images: as they are, or as its `downsample` crops them."""
    star = [particles / "particles.star", "--datadir", particles]
    if not box:
        return star
    _call(env, "downsample", *star, "-D", box, "-o", work / "particles.mrcs")
    return [work / "particles.mrcs"]


def _trial(
    env: Path, inputs: list, work: Path, settings: Settings, count: int
) -> tuple[float, float]:
    """Seconds of an epoch per image, and of everything but epochs, from one epoch of the first
    `count` images.
    """
    with (work / "some.pkl").open("wb") as file:
        pickle.dump(np.arange(count), file)
    run = _train(env, inputs, work / "trial", settings, "-n", 1, "--ind", work / "some.pkl")
    seconds = sum(_epochs(run))
    return seconds / count, run.seconds - seconds


def _train(env: Path, inputs: list, out: Path, settings: Settings, *extra) -> Run:
    size = [
        word
        for part in ("enc", "dec")
        for word in (f"--{part}-dim", settings.width, f"--{part}-layers", settings.depth)
    ]
    how = [
        "--zdim",
        settings.latent,
        *size,
        "--lr",
        settings.learning_rate,
        "--no-amp",
        "--checkpoint",
        0,
        "--no-analysis",
    ]
    return _call(env, "train_vae", *inputs, "-o", out, *how, *extra)


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
    return [
        3600 * int(hours) + 60 * int(minutes) + float(seconds) for hours, minutes, seconds in found
    ]
