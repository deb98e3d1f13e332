"""What a run of the usual settings needs on this machine: memory, and time as it was measured."""

import time
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from instamap.data.particles import Particles
from instamap.fourier import gridding, kaiser_bessel
from instamap.fourier.ctf import ctf
from instamap.progress import Progress
from instamap.statistics.accumulator import Accumulator
from instamap.statistics.statistics import Statistics

FLOAT = 4  # bytes
SETS = 3  # both halves and the held-out images
FITS = 2  # side by side
SPECTRA = 4  # that a step of a fit holds at once
STEPS = 100  # that most fits take
APPLIES = 2.5  # products with the kernel a step
TIMED_IMAGES = 64
TIMED_BOX = 48
BASE_BYTES = 400e6  # of the libraries


@dataclass(frozen=True)
class Requirements:
    """memory: bytes. seconds: about. available: bytes that are free now, where that is known."""

    memory: float
    seconds: float
    available: float | None


def measure(particles: Particles, rows: Tensor, progress: Progress) -> Requirements:
    """Times a few images and a step, and scales them to all images and the whole box."""
    reading = _seconds_an_image(particles, rows[:TIMED_IMAGES]) * particles.count
    fitting = _seconds_a_step(particles.box) * STEPS * FITS
    return Requirements(_memory(particles.box), reading + fitting, _available())


def _seconds_an_image(particles: Particles, rows: Tensor) -> float:
    accumulator = Accumulator(particles.box, particles.pixel_size)
    ones = torch.ones(particles.box // 2 + 1)
    start = 0.0
    for some in (rows[:2], rows):  # the first ones compile
        start = time.monotonic()
        batch = particles.batch(some)
        optics = batch.views.optics
        transfer = None if optics is None else ctf(optics, particles.box, particles.pixel_size)
        accumulator.add(batch.images, batch.views, noise_variance=ones, ctf=transfer)
    return (time.monotonic() - start) / len(rows)


def _seconds_a_step(box: int) -> float:
    """Scaled by the number of voxels from a smaller box."""
    timed = min(box, TIMED_BOX)
    statistics = Statistics.empty(timed, 1.0)
    volume = torch.zeros(timed, timed, timed)
    statistics.apply(volume)
    start = time.monotonic()
    statistics.apply(volume)
    return APPLIES * (time.monotonic() - start) * (box / timed) ** 3


def _memory(box: int) -> float:
    spectrum = (2 * box) ** 2 * (box + 1)
    statistics = SETS * FLOAT * (box**3 + spectrum)
    edge = kaiser_bessel.grid_size(2 * box, gridding.OVERSAMPLING)
    grid = FLOAT * gridding.CHANNELS * edge**3 / 2
    fits = FITS * SPECTRA * 2 * FLOAT * spectrum
    return BASE_BYTES + statistics + max(grid, fits)


def _available() -> float | None:
    """Bytes that the system can give, as Linux tells."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    found = [line.split()[1] for line in lines if line.startswith("MemAvailable:")]
    return 1024 * float(found[0]) if found else None
