"""What a run of the usual settings needs on this machine: memory, and time as it was measured."""

import time
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from instamap.data.particles import Particles
from instamap.fitting.normal import NormalEquations
from instamap.fitting.objective import StatisticsData
from instamap.fourier import gridding, kaiser_bessel
from instamap.fourier.ctf import ctf
from instamap.geometry.cube import Cube
from instamap.maps import mask
from instamap.model import compose
from instamap.scene import Scene
from instamap.statistics.accumulator import Accumulator
from instamap.statistics.statistics import Statistics
from instamap.workflows.settings import Settings

FLOAT = 4  # bytes
SETS = 3  # both halves and the held-out images
FITS = 2  # side by side
SPECTRA = 4  # that a step of a fit holds at once
STEPS = 100  # that most fits take
MASK_RADIUS = 0.3  # of the edge: what most particles fill
TIMED_IMAGES = 64
TIMED_BOX = 48
BASE_BYTES = 400e6  # of the libraries


@dataclass(frozen=True)
class Requirements:
    """memory: bytes. seconds: about. available: bytes that are free now, where that is known."""

    memory: float
    seconds: float
    available: float | None


def measure(particles: Particles, rows: Tensor, settings: Settings) -> Requirements:
    """Times a few images and a step, and scales them to all images and the whole box."""
    reading = _seconds_an_image(particles, rows[:TIMED_IMAGES]) * particles.count
    fitting = _seconds_a_step(settings, particles.box) * STEPS * FITS
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


def _seconds_a_step(settings: Settings, box: int) -> float:
    """Of a fit of the usual objective, scaled by the number of voxels from a smaller box."""
    timed = min(box, TIMED_BOX)
    window = mask.sphere(timed, 1.0, MASK_RADIUS * timed, 0.0)
    scene = Scene(timed, 1.0, mask=window, noise_variance=torch.ones(1, timed // 2 + 1))
    model = compose(settings.parts, scene, seed=0)
    statistics = Statistics.empty(Cube.whole(timed), 1.0)
    data = StatisticsData(statistics, statistics)
    objective = NormalEquations(NormalEquations.Options(), model, data)
    start = 0.0
    for number in range(2):  # the first one compiles
        start = time.monotonic()
        generator = torch.Generator().manual_seed(number)
        objective(model, generator).backward()
    return (time.monotonic() - start) * (box / timed) ** 3


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
