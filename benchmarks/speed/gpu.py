"""What a card computes in how long: encoding, spreading and steps of a fit, then a whole data set.

    python -m benchmarks.speed.gpu [--device cuda] [--boxes 64 128 256 512] [--images 131899]

Writes a table, then all numbers and the environment as one line of JSON (`| tail -1`). Without a
card it says so and measures nothing. Times are medians of runs that end when the card has.

- encode: 2^18 points, forward and both gradients: by Triton with sums that repeat and as they come,
  by torch, and by tinycudann where it is installed.
- spread: 100 images of a box, transformed and spread onto the Fourier grid.
- fit step: one step of the normal equations inside a ball of half of the box.
- whole: images of 256 px with random poses, made on the card, to the statistics of two halves, then
  75 steps for each; without reading and without making images.

Bytes that must move at least stand beside encode and spread, for a share of the bandwidth.
"""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.lib.common import environment
from instamap.errors import InstamapError
from instamap.fitting.adam import Adam
from instamap.fitting.normal import NormalEquations
from instamap.fitting.objective import StatisticsData
from instamap.geometry import device_kernels, rotations
from instamap.maps import mask
from instamap.model import compose
from instamap.representations.encodings.grid import encode_torch
from instamap.representations.encodings.levels import Levels, levels
from instamap.scene import Scene, Views
from instamap.statistics.accumulator import Accumulator
from instamap.statistics.statistics import Statistics
from instamap.workflows.devices import choose_device, described
from instamap.workflows.settings import Settings

GRID = levels(8, 8, 64, 2, 17, False)
PIXEL_SIZE = 1.0  # Å
CHUNK = 100  # images at a time
WHOLE_BOX = 256
STEPS = 75  # of the fit of a half
CORNERS = 8
FLOAT = 4  # bytes


def waited(device: torch.device) -> None:
    """Returns when the device has done all that it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def seconds(work: Callable[[], object], device: torch.device, repeats: int) -> float:
    """The median time of `work`, after one run that is not counted."""
    work()
    times = []
    for _ in range(repeats):
        waited(device)
        start = time.perf_counter()
        work()
        waited(device)
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def encoders(device: torch.device) -> dict[str, Callable[[Tensor, Tensor, Levels], Tensor]]:
    """The encodings that there are on this device, by name."""
    found: dict[str, Callable[[Tensor, Tensor, Levels], Tensor]] = {"torch": encode_torch}
    if device_kernels.usable(device):
        from instamap.representations.encodings.grid_triton import encode_triton

        def as_they_come(x: Tensor, table: Tensor, grid: Levels) -> Tensor:
            return encode_triton(x, table, grid, deterministic=False)

        found["triton, repeating"] = encode_triton
        found["triton"] = as_they_come
    return found | tinycudann(device)


def tinycudann(device: torch.device) -> dict[str, Callable[[Tensor, Tensor, Levels], Tensor]]:
    """NVIDIA's encoding, where it and the plugin for it are installed."""
    if device.type != "cuda":
        return {}
    try:
        import tinycudann as package
        from instamap_tinycudann import layout
    except (ImportError, OSError):
        return {}
    configurations = layout.configurations(GRID)
    made = [package.Encoding(3, each, dtype=torch.float32) for each in configurations]

    def encode(x: Tensor, table: Tensor, grid: Levels) -> Tensor:
        flat = layout.to_tinycudann(table, grid)
        features = []
        for encoding, parameters, cells in zip(made, flat, grid.resolutions, strict=True):
            points = layout.shifted(x, cells)
            named = {"params": parameters}
            features.append(torch.func.functional_call(encoding, named, (points,)))
        return torch.cat(features, 1)

    return {"tinycudann": encode}


def time_encoding(device: torch.device, points: int, repeats: int) -> list[dict[str, object]]:
    """A row for each encoding: forward and both gradients."""
    x = torch.rand(points, 3, device=device, requires_grad=True)
    table = torch.rand(GRID.entries, GRID.features, device=device, requires_grad=True)
    upstream = torch.ones(points, GRID.width, device=device)
    # Points twice, features and their gradients once, each entry once in and once out.
    moved = FLOAT * (6 * points + 2 * points * GRID.width + 2 * table.numel())
    rows = []
    for name, encode in encoders(device).items():

        def work(encode: Callable[[Tensor, Tensor, Levels], Tensor] = encode) -> None:
            encode(x, table, GRID).backward(upstream)

        taken = seconds(work, device, repeats)
        rows.append(row(f"encode, {name}", points, "points", taken, moved))
    return rows


def images_of(box: int, count: int, device: torch.device) -> tuple[Tensor, Views]:
    """Noise with random poses."""
    generator = torch.Generator().manual_seed(0)
    views = Views.of(rotations.random(count, generator=generator).float())
    return torch.randn(count, box, box, device=device), views.to(device)


def time_spreading(device: torch.device, box: int, repeats: int) -> dict[str, object]:
    """The transform and the spreading of CHUNK images."""
    accumulator = Accumulator(box, PIXEL_SIZE, device=device)
    images, views = images_of(box, CHUNK, device)
    variance = torch.ones(box // 2 + 1)

    def work() -> None:
        accumulator.add(images, views, noise_variance=variance)

    moved = FLOAT * images.numel()
    return row(f"spread, {box} px", CHUNK, "images", seconds(work, device, repeats), moved)


def fit_of(statistics_of_half: Statistics, box: int, device: torch.device) -> Callable[[], None]:
    """One step of a fit, to be called again and again."""
    window = mask.sphere(box, PIXEL_SIZE, box * PIXEL_SIZE / 4, 0.0)
    noise = torch.ones(1, box // 2 + 1)
    scene = Scene(box, PIXEL_SIZE, mask=window, noise_variance=noise)
    settings = Settings(particles=Path("none.star"), objective="normal")
    model = compose(settings.parts, scene, 0).to(device)
    assert settings.objective is not None
    data = StatisticsData(statistics_of_half, statistics_of_half)
    objective = NormalEquations(settings.objective.options, model, data)
    optimiser = Adam(model.parameter_groups())
    generator = torch.Generator().manual_seed(0)

    def step() -> None:
        optimiser.zero_grad()
        objective(model, generator).backward()
        optimiser.step()
        objective.follow(model, 0.95)

    return step


def time_steps(device: torch.device, box: int, repeats: int) -> dict[str, object]:
    """A step of the normal equations."""
    accumulator = Accumulator(box, PIXEL_SIZE, device=device)
    images, views = images_of(box, 4, device)
    accumulator.add(images, views, noise_variance=torch.ones(box // 2 + 1))
    step = fit_of(accumulator.finish(), box, device)
    return row(f"fit step, {box} px", 1, "step", seconds(step, device, repeats), None)


def time_whole(device: torch.device, images: int, box: int, steps: int) -> dict[str, object]:
    """Two halves of a data set, from images on the device to as many steps as a fit takes."""
    variance = torch.ones(box // 2 + 1)
    total = 0.0
    for _ in range(2):
        accumulator = Accumulator(box, PIXEL_SIZE, device=device)
        batch, views = images_of(box, CHUNK, device)
        waited(device)
        start = time.perf_counter()
        for _ in range(0, images // 2, CHUNK):
            accumulator.add(batch, views, noise_variance=variance)
        step = fit_of(accumulator.finish(), box, device)
        for _ in range(steps):
            step()
        waited(device)
        total += time.perf_counter() - start
    return row(f"whole, {box} px", images, "images", total, None)


def row(name: str, count: int, unit: str, taken: float, moved: int | None) -> dict[str, object]:
    """What was measured: seconds, and the gigabytes a second of what must move."""
    rate = None if moved is None else moved / taken / 1e9
    return {"name": name, "count": count, "unit": unit, "seconds": taken, "gb_per_s": rate}


def table(rows: list[dict[str, object]]) -> str:
    """The rows as a table in Markdown."""
    lines = ["| what | of | ms | GB/s at least |", "| --- | --- | --- | --- |"]
    for each in rows:
        rate = "" if each["gb_per_s"] is None else f"{each['gb_per_s']:.3g}"
        milliseconds = 1e3 * float(str(each["seconds"]))
        lines.append(
            f"| {each['name']} | {each['count']} {each['unit']} | {milliseconds:.4g} | {rate} |"
        )
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--boxes", type=int, nargs="*", default=[64, 128, 256, 512])
    parser.add_argument("--points", type=int, default=1 << 18)
    parser.add_argument("--images", type=int, default=131_899, help="of the whole; 0: none")
    parser.add_argument("--repeats", type=int, default=7)
    chosen = parser.parse_args(arguments)
    try:
        device = choose_device(chosen.device)
    except InstamapError as error:
        sys.stdout.write(f"nothing was measured: {error}\n")
        return
    rows = time_encoding(device, chosen.points, chosen.repeats)
    for box in chosen.boxes:
        rows.append(time_spreading(device, box, chosen.repeats))
        rows.append(time_steps(device, box, chosen.repeats))
    if chosen.images:
        rows.append(time_whole(device, chosen.images, WHOLE_BOX, STEPS))
    sys.stdout.write(f"{described(device)}\n\n{table(rows)}\n\n")
    numbers = {"device": described(device), "rows": rows, **environment()}
    sys.stdout.write(json.dumps(numbers) + "\n")


if __name__ == "__main__":
    main()
