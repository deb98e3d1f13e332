"""One streaming pass over the particles: each set's images become its statistics, read ahead while the last ones are spread."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

from torch import Tensor

from instamap.data.particles import Particles
from instamap.fit.accumulate import Accumulator
from instamap.fit.statistics import Statistics
from instamap.forward.ctf import ctf
from instamap.protocols import Likelihood
from instamap.scene import Batch

CHUNK_PIXELS = 1 << 21  # of the images in memory at once; two such chunks exist while one is read ahead


def gather(
    particles: Particles, rows: dict[str, Tensor], likelihood: Likelihood, *, symmetry: Tensor | None = None, weights: Tensor | None = None,
    watch: Callable[[int], None] = lambda count: None,
) -> dict[str, Statistics]:  # fmt: skip
    """Statistics of each set of row numbers in `rows`, with the noise of a quadratic likelihood.

    symmetry "S 3 3": see `Accumulator`. weights "n": of all particles' log p. watch is told how many images were added.
    """
    return {name: _one(particles, some, likelihood, symmetry, weights, watch) for name, some in rows.items()}


def _one(particles, rows, likelihood, symmetry, weights, watch) -> Statistics:
    accumulator = Accumulator(particles.box, particles.pixel_size, symmetry=symmetry, premultiplied=particles.premultiplied)
    for batch in read_ahead(particles, rows):
        views = batch.views
        transfer = None if views.optics is None else ctf(views.optics, particles.box, particles.pixel_size)
        accumulator.add(
            batch.images, views, noise_variance=likelihood.noise_variance(views), ctf=transfer,
            weights=None if weights is None else weights[views.index],
        )  # fmt: skip
        watch(len(batch))
    return accumulator.finish()


def read_ahead(particles: Particles, rows: Tensor) -> Iterator[Batch]:
    """Batches of the rows in order; the next one is read in a thread while the last one is used."""
    chunks = rows.split(max(1, CHUNK_PIXELS // particles.box**2))
    with ThreadPoolExecutor(1) as reader:
        waiting = None
        for chunk in (*chunks, None):
            ready, waiting = waiting, None if chunk is None else reader.submit(particles.batch, chunk)
            if ready is not None:
                yield ready.result()
