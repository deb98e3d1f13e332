"""One streaming pass over the particles: each set's images become its statistics, read ahead while
the last ones are spread.
"""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Protocol

import torch
from torch import Tensor

from instamap.data.particles import Particles
from instamap.fourier.ctf import compiled_ctf
from instamap.geometry.cube import Cube
from instamap.parts import GaussianLikelihood
from instamap.progress import SILENT, Progress
from instamap.scene import Batch
from instamap.statistics import accumulator as accumulators
from instamap.statistics.statistics import Statistics

# Pixels of the images in memory at once; two such chunks exist while one is read ahead.
CHUNK_PIXELS = 1 << 21


class StatisticsCheckpoint(Protocol):
    """A place that keeps the statistics of a set's first rows, for a pass that is interrupted."""

    def save(self, name: str, statistics: Statistics) -> None:
        """Keeps the statistics of the set called `name`, in the place of its last ones."""


def accumulate(
    particles: Particles,
    rows_by_name: dict[str, Tensor],
    likelihood: GaussianLikelihood,
    *,
    cube: Cube | None = None,
    symmetry: Tensor | None = None,
    weights: Tensor | None = None,
    progress: Progress = SILENT,
    before: dict[str, Statistics] | None = None,
    checkpoint: StatisticsCheckpoint | None = None,
    device: torch.device | str = "cpu",
) -> dict[str, Statistics]:
    """The statistics of each set of row numbers, by its name, in the noise of the likelihood.

    cube, symmetry "S 3 3": see `Accumulator`. weights "n": of all particles' log p. checkpoint:
    keeps the statistics of a set's first rows each time that the grid is emptied, and those of the
    whole set. before: what was kept in an earlier pass over the same rows; these are not read
    again, and the outcome is the same to the last bit. device: where images are transformed and
    spread; the statistics are given back on the CPU.
    """
    done = before or {}
    left = {
        name: rows[done[name].count :] if name in done else rows
        for name, rows in rows_by_name.items()
    }
    reading = _Reading(progress, sum(len(rows) for rows in left.values()))
    found = {}
    place = torch.device(device)
    for name, rows in left.items():
        single = _Pass(particles, likelihood, cube, symmetry, weights, reading, place)
        found[name] = single.carry_out(name, rows, done.get(name), checkpoint)
    return found


class _Reading:
    """How many of the images of all sets have been read, as it is told."""

    def __init__(self, progress: Progress, total: int) -> None:
        self._progress = progress
        self._total = total
        self._done = 0
        if total:
            progress.images_read(0, total)  # from which on the time counts

    def add(self, count: int) -> None:
        self._done += count
        self._progress.images_read(self._done, self._total)


class _Pass:
    """A pass over the images of one set."""

    def __init__(
        self,
        particles: Particles,
        likelihood: GaussianLikelihood,
        cube: Cube | None,
        symmetry: Tensor | None,
        weights: Tensor | None,
        reading: _Reading,
        device: torch.device,
    ) -> None:
        self.particles = particles
        self.likelihood = likelihood
        self.cube = cube
        self.symmetry = symmetry
        self.weights = weights
        self.reading = reading
        self.device = device

    def carry_out(
        self,
        name: str,
        rows: Tensor,
        start: Statistics | None,
        checkpoint: StatisticsCheckpoint | None,
    ) -> Statistics:
        """The statistics of these rows, added to those that it starts from."""
        accumulator = accumulators.Accumulator(
            self.particles.box,
            self.particles.pixel_size,
            cube=self.cube,
            symmetry=self.symmetry,
            premultiplied=self.particles.premultiplied,
            device=self.device,
            start=None if start is None else start.to(self.device),
        )
        mates = 1 if self.symmetry is None else len(self.symmetry)
        unsaved = 0
        for batch in read_ahead(self.particles, rows, pinned=self.device.type == "cuda"):
            self._add(accumulator, batch)
            self.reading.add(len(batch))
            unsaved += len(batch)
            if unsaved * mates >= accumulators.FLUSH:
                statistics = accumulator.finish()  # kept or not, for the sums to be the same
                if checkpoint is not None:
                    checkpoint.save(name, statistics.to("cpu"))
                unsaved = 0
        statistics = accumulator.finish().to("cpu")
        if checkpoint is not None and (unsaved or start is None):
            checkpoint.save(name, statistics)
        return statistics

    def _add(self, accumulator: accumulators.Accumulator, batch: Batch) -> None:
        views = batch.views
        transfer = None
        if views.optics is not None:
            optics = views.optics.to(self.device)
            transfer = compiled_ctf(optics, self.particles.box, self.particles.pixel_size)
        weights = None if self.weights is None else self.weights[views.index]
        accumulator.add(
            batch.images.to(self.device, non_blocking=True),
            views,
            noise_variance=self.likelihood.noise_variance(views),
            ctf=transfer,
            weights=weights,
        )


def read_ahead(particles: Particles, rows: Tensor, *, pinned: bool = False) -> Iterator[Batch]:
    """Batches of the rows in order; the next one is read in a thread while the last one is used.

    pinned: images are in memory from which a card copies them while it computes.
    """
    if not len(rows):
        return

    def read(chunk: Tensor) -> Batch:
        batch = particles.batch(chunk)
        return replace(batch, images=batch.images.pin_memory()) if pinned else batch

    size = max(1, CHUNK_PIXELS // particles.box**2)
    with ThreadPoolExecutor(1) as reader:
        waiting = None
        for chunk in rows.split(size):
            ready = waiting
            waiting = reader.submit(read, chunk)
            if ready is not None:
                yield ready.result()
        if waiting is not None:
            yield waiting.result()
