"""What a map of the usual settings needs on this machine: memory, as its arrays are counted, and
time, as a few images and a step of a small fit take.
"""

import math
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from instamap.data.particles import Particles
from instamap.errors import OptionError
from instamap.fitting.normal import NormalEquations
from instamap.fitting.objective import StatisticsData
from instamap.fourier import gridding, kaiser_bessel
from instamap.fourier.ctf import compiled_ctf
from instamap.geometry.cube import Cube
from instamap.maps import mask
from instamap.model import compose
from instamap.scene import Scene
from instamap.statistics.accumulator import Accumulator
from instamap.statistics.statistics import Statistics
from instamap.threads import single_thread
from instamap.workflows.settings import Settings

SETS = 3  # both halves and the held-out images
FITS = 2  # side by side
STEPS = 100  # that most fits take
MASK_RADIUS = 0.36  # of the cube's edge: a fifth of its volume, which most particles fill
TYPICAL_EDGE = 0.75  # of the box, of the cube that holds most particles
TIMED_IMAGES = 64
TIMED_BOX = 48
TIMED_STEP_BOX = 64  # in smaller ones a step waits for Python
TIMED_STEPS = 3
# Bytes, as measured: of the libraries; of a point of the field in a step of a fit, tables and their
# moments among them; of a voxel of the cube, for what compares half maps; of a voxel of the box,
# for the maps that are written.
BASE_BYTES = 600e6
BYTES_PER_POINT = 350
BYTES_PER_VOXEL_COMPARED = 100
BYTES_PER_VOXEL_WRITTEN = 20


@dataclass(frozen=True)
class Requirements:
    """memory: bytes. reading, step: seconds for all images, for a step of all fits. available:
    bytes that are free now, where that is known.
    """

    memory: float
    reading: float
    step: float
    available: float | None

    @property
    def seconds(self) -> float:
        """All in all, about."""
        return self.reading + STEPS * self.step

    @property
    def fits(self) -> bool:
        """Whether the memory that is free suffices, as far as that is known."""
        return self.available is None or self.memory < self.available

    def check(self) -> None:
        """Raises OptionError where the memory does not suffice."""
        if self.fits:
            return
        assert self.available is not None  # or else it would suffice
        raise OptionError(
            f"this needs about {self.memory / 1e9:.1f} GB of memory, and"
            f" {self.available / 1e9:.1f} GB are free; scale the images down (--box), cut their rim"
            " off (--crop), give a tighter --mask, or take a machine with more memory"
        )


def typical_cube(box: int) -> Cube:
    """The cube that would hold most particles."""
    if box < TIMED_BOX:
        return Cube.whole(box)
    margin = round(box * (1 - TYPICAL_EDGE) / 2)
    return Cube(box, margin, box - margin)


def measure(particles: Particles, rows: Tensor, settings: Settings, cube: Cube) -> Requirements:
    """Times a few images of `rows` and a step, and scales them to all images and the cube."""
    reading = _seconds_to_read(particles, rows[:TIMED_IMAGES], cube)
    step = _seconds_a_step(settings, cube.edge)
    return Requirements(_memory(cube), reading, step, _available())


def _seconds_to_read(particles: Particles, rows: Tensor, cube: Cube) -> float:
    """Of all images, and of emptying the grid after each set, as a few images and a grid of few
    voxels take, in whose cells as many components are spread.
    """
    small = _middle(cube, TIMED_BOX)
    accumulator = Accumulator(particles.box, particles.pixel_size, cube=small)
    ones = torch.ones(particles.box // 2 + 1)
    for some in (rows[:2], rows):  # the first ones compile
        start = time.monotonic()
        batch = particles.batch(some)
        optics = batch.views.optics
        transfer = None
        if optics is not None:
            transfer = compiled_ctf(optics, particles.box, particles.pixel_size)
        accumulator.add(batch.images, batch.views, noise_variance=ones, ctf=transfer)
        accumulator.spread()
        spread = time.monotonic()
        accumulator.finish()
    emptied = time.monotonic() - spread
    images = (spread - start) / len(rows) * particles.count
    return images + SETS * emptied * (cube.edge / small.edge) ** 3


def _middle(cube: Cube, edge: int) -> Cube:
    """At most so many voxels about the middle of the box."""
    low = max(cube.low, cube.box // 2 - edge // 2)
    return Cube(cube.box, low, min(cube.high, low + edge))


def _seconds_a_step(settings: Settings, edge: int) -> float:
    """Of all fits of the usual objective side by side, each in a thread, scaled by the number of
    voxels from a smaller box.
    """
    timed = min(edge, TIMED_STEP_BOX)
    window = mask.sphere(timed, 1.0, MASK_RADIUS * timed, 0.0)
    scene = Scene(timed, 1.0, mask=window, noise_variance=torch.ones(1, timed // 2 + 1))
    model = compose(settings.parts, scene, seed=0)
    statistics = Statistics.empty(Cube.whole(timed), 1.0)
    data = StatisticsData(statistics, statistics)
    objective = NormalEquations(NormalEquations.Options(), model, data)
    seconds = []
    with single_thread():
        for number in range(TIMED_STEPS):  # the first one compiles
            start = time.monotonic()
            generator = torch.Generator().manual_seed(number)
            objective(model, generator).backward()
            seconds.append(time.monotonic() - start)
    one = min(seconds) * (edge / timed) ** 3
    return one * FITS / min(FITS, torch.get_num_threads())


def _memory(cube: Cube) -> float:
    """Bytes at the most demanding of four times: while images are gathered, fitted, compared, and
    maps written.
    """
    n = cube.edge
    middle = cube.centred().edge
    real = torch.float32.itemsize
    kernel = real * (2 * n) ** 2 * (n + 1)
    one_set = kernel + real * n**3
    size = kaiser_bessel.grid_size(2 * n, gridding.OVERSAMPLING)
    cells = real * gridding.CHANNELS * size**3 / 2
    transform = 2 * real * (2 * n) ** 2 * (size // 2 + 1)
    gathering = (SETS - 1) * one_set + cells + transform
    points = 4 / 3 * math.pi * (MASK_RADIUS * n) ** 3
    fitting = SETS * one_set + FITS * (kernel + 6 * real * middle**3 + BYTES_PER_POINT * points)
    comparing = SETS * one_set + BYTES_PER_VOXEL_COMPARED * middle**3
    writing = SETS * one_set + BYTES_PER_VOXEL_WRITTEN * cube.box**3
    return BASE_BYTES + max(gathering, fitting, comparing, writing)


def _available() -> float | None:
    """Bytes that the system can give, as Linux tells."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    found = [line.split()[1] for line in lines if line.startswith("MemAvailable:")]
    return 1024 * float(found[0]) if found else None
