"""What single precision costs: b, K∗V and the loss in float32 against float64.

    python -m benchmarks.accuracy.precision --data T [--count 500] [--make PATH] [--seeds 0]
        [--out FILE.json]

The same images, drawn with the seed, go through the same window onto the same grid, so the error of
the grid itself (2e-4, see docs/decisions) is in both, and what differs is rounding alone. V is the
least-squares map of the float64 statistics inside the largest sphere, once more rounded for
float32. Errors are relative, in L2; that of the loss is also given in nats per image, since a fit
compares held-out likelihoods. float32 on CPUs comes in two ways, the compiled spreading and
torch's. A unit of the last place is 1.2e-7.
"""

from pathlib import Path

import torch
from torch import Tensor

from benchmarks.lib import sets
from benchmarks.lib.common import environment
from benchmarks.lib.options import parser
from benchmarks.lib.report import number, save, show, table
from instamap.data import noise
from instamap.data.particles import Particles
from instamap.fourier.ctf import ctf
from instamap.maps import mask
from instamap.statistics import initial_map
from instamap.statistics.accumulator import Accumulator
from instamap.statistics.statistics import Statistics

HEAD = ["SET", "IMAGES", "FLOAT32 BY", "b", "K∗V", "K∗V, K IN FLOAT64", "LOSS", "LOSS, NATS/IMAGE"]
CHUNK = 256


def gather(
    particles: Particles, rows: Tensor, variance: Tensor, dtype: torch.dtype, backend: str
) -> Statistics:
    """Statistics of the rows; poses and transfer functions are computed in float64 and rounded
    after, as `Particles` keeps them.
    """
    accumulator = Accumulator(
        particles.box,
        particles.pixel_size,
        premultiplied=particles.premultiplied,
        dtype=dtype,
        backend=backend,
    )
    for some in rows.split(CHUNK):
        batch = particles.batch(some, torch.float64)
        optics = batch.views.optics
        transfer = None if optics is None else ctf(optics, particles.box, particles.pixel_size)
        accumulator.add(
            batch.images, batch.views, noise_variance=variance[batch.views.group], ctf=transfer
        )
    return accumulator.finish()


def relative(found: Tensor, true: Tensor) -> float:
    """|found - true| / |true|."""
    return float((found.double() - true).norm() / true.norm())


def one(folder: Path, count: int, seed: int) -> list[dict]:
    """Errors of each way of computing in float32."""
    particles = Particles.open(folder / "particles.star")
    rows = (
        torch.randperm(particles.count, generator=torch.Generator().manual_seed(seed))[:count]
        .sort()
        .values
    )
    variance = noise.estimate(particles, rows, seed=seed)
    exact = gather(particles, rows, variance, torch.float64, "torch")
    radius = (particles.box // 2 - 0.5) * particles.pixel_size
    volume = initial_map.solve(
        exact, mask.sphere(particles.box, particles.pixel_size, radius, 0.0).double()
    )
    curved = exact.apply(volume)
    loss = float(exact.loss(volume))
    results = []
    for backend in dict.fromkeys((Accumulator(8, 1.0).backend, "torch")):
        single = gather(particles, rows, variance, torch.float32, backend)
        off = float(single.loss(volume.float())) - loss
        found = {
            "b": relative(single.b, exact.b),
            "product": relative(single.apply(volume.float()), curved),
        }
        found |= {"product_in_float64": relative(single.to(torch.float64).apply(volume), curved)}
        found |= {"loss": abs(off / loss), "loss_nats_per_image": abs(off) / len(rows)}
        results.append(
            {
                "set": folder.resolve().name,
                "seed": seed,
                "images": len(rows),
                "backend": backend,
                **found,
            }
        )
    return results


def main() -> None:
    add = parser(__doc__, score=False, seeds=(0,))
    add.add_argument("--count", type=int, default=500, help="images of the set, at most")
    options = add.parse_args()
    where = environment()
    folders = [sets.find(folder, options.make) for folder in options.data]
    results = [
        r for seed in options.seeds for folder in folders for r in one(folder, options.count, seed)
    ]
    errors = ("b", "product", "product_in_float64", "loss", "loss_nats_per_image")
    show(
        table(
            HEAD,
            [
                [r["set"], str(r["images"]), r["backend"], *[number(r[k], ".1e") for k in errors]]
                for r in results
            ],
        )
    )
    save(
        options.out,
        "precision",
        where,
        results,
        sets=[sets.describe(folder) for folder in folders],
        seeds=options.seeds,
    )


if __name__ == "__main__":
    main()
