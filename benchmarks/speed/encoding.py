"""How long the grid encoding takes: compiled kernels against the torch reference, turn by turn in
one run.

    python -m benchmarks.speed.encoding [--points 262144] [--repeats 7] [--threads N]

Writes a table, then all numbers and the environment as one line of JSON (`| tail -1`). Times are
medians; machines are noisy, so read the ratios. Where other work shares the cores, measure with
--threads 1: torch's threads wait for each other spinning, and if one of them must wait for a core
the reference looks ten times slower than it is. Points come in random order (each finds other
entries: the worst case) and in the order of a jittered raster (as in a reconstruction, where
neighbours share entries).

The floor, for N = 2^18 points, 8 levels from 8 to 64 cells, 2 features, tables of at most 2^17
entries (330,153 in all, 2.6 MB):

- memory: 12 N bytes of points are read and 64 N bytes of features written, 20 MB; each backward
pass reads 20 MB again and writes 3 MB.
  At the 10 GB/s of a core that is 2 ms a pass. "copy" times a copy of the features, 34 MB moved.
- cache: a point needs 8 levels x 8 corners x 8 bytes, 134 MB in 16.8 M loads from a table that fits
no first-level cache; the table's
  gradient loads and stores as many. In dense levels, the corners of a cell lie in 4 cache lines.
- operations: 7 interpolations of 2 features and about 20 for cell and rows, 50 a level, 100 M a
pass: 10 ms on a core at 10 G a second.

So a pass costs about 10 ms of one core if neither loads nor branches stall it, and a forward and
backward about 30.
"""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable

import torch
from torch import Tensor

from benchmarks.lib.common import environment
from instamap.representations.decoder import decoder
from instamap.representations.encodings.grid import backend, encode, encode_torch
from instamap.representations.encodings.levels import Levels, levels

GRID = levels(8, 8, 64, 2, 17, False)
CHUNK = 1 << 14  # points at a time in the decoder: more are slower


def points(order: str, count: int) -> Tensor:
    """`count` points "n 3" of the unit cube: at random, or the voxels of a raster (x fastest), each
    moved by up to half a voxel.
    """
    generator = torch.Generator().manual_seed(0)
    jitter = torch.rand(count, 3, generator=generator)
    if order == "random":
        return jitter
    n = round(count ** (1 / 3))
    index = torch.arange(count)
    voxel = torch.stack([index % n, index // n % n, index // n**2], 1)
    return (voxel + jitter) / n


def timed(work: Callable) -> tuple[float, float]:
    """Milliseconds by the clock and of processor time."""
    clock = time.perf_counter()
    processor = time.process_time()
    work()
    return 1e3 * (time.perf_counter() - clock), 1e3 * (time.process_time() - processor)


def alternate(works: dict[str, Callable], repeats: int) -> dict[str, dict[str, float]]:
    """Median milliseconds of each, measured in turns after one turn that is not counted
    (compilation, first touch of memory).
    """
    for work in works.values():
        work()
    times = {name: [] for name in works}
    for _ in range(repeats):
        for name, work in works.items():
            times[name].append(timed(work))
    medians = {
        name: [statistics.median(numbers) for numbers in zip(*each, strict=True)]
        for name, each in times.items()
    }
    return {
        name: {"ms": clock, "cpu_ms": processor} for name, (clock, processor) in medians.items()
    }


def passes(
    function: Callable, x: Tensor, table: Tensor, grad: Tensor, wanted: str, grid: Levels = GRID
) -> Callable:
    """One pass: "forward", "table" (forward, and backward to the table) or "both" (and to the
    positions).
    """
    x = x.clone().requires_grad_(wanted == "both")
    table = table.clone().requires_grad_(wanted != "forward")

    def work():
        out = function(x, table, grid)
        if wanted != "forward":
            torch.autograd.grad(out, [t for t in (x, table) if t.requires_grad], grad)

    return work


def fields(x: Tensor, table: Tensor) -> dict[str, Callable]:
    """Forward and backward of a whole field: with a decoder of 32 units, and with none at all, the
    limit of any cheaper decoder.
    """
    table = table.clone().requires_grad_()
    network = decoder(GRID.width, 32, 1)

    def with_decoder():
        features = encode(x, table, GRID)
        torch.cat([network(chunk).flatten() for chunk in features.split(CHUNK)]).sum().backward()

    def without():
        encode(x, table, GRID).sum().backward()

    return {"decoder": with_decoder, "decoder-free": without}


def measure(count: int, repeats: int) -> list[dict]:
    """One entry per order of points and pass: medians of both implementations and their ratio."""
    generator = torch.Generator().manual_seed(1)
    table = torch.randn(GRID.entries, GRID.features, generator=generator)
    grad = torch.randn(count, GRID.width, generator=generator)
    results = []
    for order in ("random", "raster"):
        x = points(order, count)
        ours = backend(x)
        for wanted in ("forward", "table", "both"):
            works = {
                ours: passes(encode, x, table, grad, wanted),
                "reference": passes(encode_torch, x, table, grad, wanted),
            }
            median = alternate(works, repeats)
            ratios = {
                f"{unit}_ratio": median["reference"][unit] / median[ours][unit]
                for unit in ("ms", "cpu_ms")
            }
            results.append(
                {
                    "order": order,
                    "pass": wanted,
                    "backend": ours,
                    **median[ours],
                    "reference": median["reference"],
                    **ratios,
                }
            )
        for name, median in alternate({"copy": grad.clone, **fields(x, table)}, repeats).items():
            results.append(
                {
                    "order": order,
                    "pass": name,
                    "backend": "torch" if name == "copy" else ours,
                    **median,
                }
            )
    return results


def report(results: list[dict]) -> str:
    """The table."""
    lines = [
        f"{'points':8}{'pass':14}{'backend':9}{'ms':>8}{'cpu ms':>8}"
        f"{'torch ms':>10}{'cpu ms':>8}{'ratio':>7}{'of cpu':>8}"
    ]
    for r in results:
        line = f"{r['order']:8}{r['pass']:14}{r['backend']:9}{r['ms']:8.1f}{r['cpu_ms']:8.1f}"
        if "reference" in r:
            reference = r["reference"]
            line += f"{reference['ms']:10.1f}{reference['cpu_ms']:8.1f}"
            line += f"{r['ms_ratio']:7.1f}{r['cpu_ms_ratio']:8.1f}"
        lines.append(line)
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--points", type=int, default=1 << 18)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--threads", type=int, default=None, help="as torch chooses, if left out")
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    results = measure(options.points, options.repeats)
    sys.stdout.write(report(results) + "\n")
    record = {
        "benchmark": "encoding",
        "points": options.points,
        "environment": environment(),
        "results": results,
    }
    sys.stdout.write(json.dumps(record) + "\n")


if __name__ == "__main__":
    main()
