"""One streaming pass over the particles: each set's images become its statistics, read ahead while
the last ones are spread.
"""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

from torch import Tensor

from instamap.data.particles import Particles
from instamap.fourier.ctf import ctf
from instamap.parts import Likelihood
from instamap.scene import Batch
from instamap.statistics import accumulator as accumulators
from instamap.statistics.statistics import Statistics

CHUNK_PIXELS = (
    1 << 21
)  # of the images in memory at once; two such chunks exist while one is read ahead


def gather(
    particles: Particles,
    rows: dict[str, Tensor],
    likelihood: Likelihood,
    *,
    symmetry: Tensor | None = None,
    weights: Tensor | None = None,
    watch: Callable[[int], None] = lambda count: None,
    before: dict[str, Statistics] | None = None,
    keep: Callable[[str, Statistics], None] = lambda name, statistics: None,
) -> dict[str, Statistics]:
    """Statistics of each set of row numbers in `rows`, with the noise of a quadratic likelihood.

    symmetry "S 3 3": see `Accumulator`. weights "n": of all particles' log p. watch is told how
    many images were added. keep(name, statistics) is told of those of a set's first rows each time
    that the grid is emptied, and of the whole set. before: what keep was told in an earlier pass
    over the same rows; these are not read again, and the outcome is the same to the last bit.
    """
    found = {}
    for name, some in rows.items():
        done = (before or {}).get(name)
        found[name] = _one(
            particles,
            some,
            likelihood,
            symmetry,
            weights,
            watch,
            done,
            lambda s, name=name: keep(name, s),
        )
    return found


def _one(particles, rows, likelihood, symmetry, weights, watch, done, keep) -> Statistics:
    symmetric = {"symmetry": symmetry, "premultiplied": particles.premultiplied}
    accumulator = accumulators.Accumulator(
        particles.box, particles.pixel_size, **symmetric, start=done
    )
    mates = 1 if symmetry is None else len(symmetry)
    fresh = 0
    for batch in read_ahead(particles, rows if done is None else rows[done.count :]):
        views = batch.views
        transfer = (
            None if views.optics is None else ctf(views.optics, particles.box, particles.pixel_size)
        )
        accumulator.add(
            batch.images,
            views,
            noise_variance=likelihood.noise_variance(views),
            ctf=transfer,
            weights=None if weights is None else weights[views.index],
        )
        watch(len(batch))
        fresh += len(batch)
        if fresh * mates >= accumulators.FLUSH:
            keep(accumulator.finish())
            fresh = 0
    if fresh or done is None:
        keep(accumulator.finish())
    return accumulator.finish()


def counter(sets: dict[str, Tensor], count: Callable[[int, int], None]) -> Callable[[int], None]:
    """A `watch` that passes on how many of the rows of all sets are done: count(done, total)."""
    done = 0
    total = sum(len(rows) for rows in sets.values())

    def watch(number: int) -> None:
        nonlocal done
        done += number
        count(done, total)

    return watch


def read_ahead(particles: Particles, rows: Tensor) -> Iterator[Batch]:
    """Batches of the rows in order; the next one is read in a thread while the last one is used."""
    chunks = rows.split(max(1, CHUNK_PIXELS // particles.box**2)) if len(rows) else ()
    with ThreadPoolExecutor(1) as reader:
        waiting = None
        for chunk in (*chunks, None):
            ready = waiting
            waiting = None if chunk is None else reader.submit(particles.batch, chunk)
            if ready is not None:
                yield ready.result()
