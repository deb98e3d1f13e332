"""Whether coordinates tell of motion or of pose: the share of their variance that the direction of
view explains, and pictures.
"""

import math
from pathlib import Path

import torch
from torch import Tensor

from instamap.files import replacing

TERMS = 8  # spherical harmonics of degree 1 and 2
DRAWN = 20_000  # particles at most in a picture
BINS = 48  # of a coordinate, in which the density of particles is counted


def leakage(latents: Tensor, rotation: Tensor) -> list[float | None]:
    """For each coordinate of "n L" the share of its variance that the direction of view explains;
    None where nothing varies or n < 10.

    R² of the least-squares fit of the 9 real spherical harmonics up to degree 2 of the direction
    (the third row of `rotation` "n 3 3"), less what chance explains: 1 - (1 - R²)(n - 1)/(n - 9),
    at least 0 (Ezekiel 1930). Molecules that tumble freely and coordinates that mean motion give
    about 0.
    """
    count = len(latents)
    if count < TERMS + 2:
        return [None] * latents.shape[1]
    basis = harmonics(rotation[:, 2].double())
    centred = latents.double() - latents.double().mean(0)
    rest = centred - basis @ torch.linalg.lstsq(basis, centred, driver="gelsd").solution
    found = []
    for unexplained, total in zip(
        rest.square().sum(0).tolist(), centred.square().sum(0).tolist(), strict=True
    ):
        found.append(
            max(0.0, 1 - unexplained / total * (count - 1) / (count - 1 - TERMS))
            if total > 0
            else None
        )
    return found


def harmonics(direction: Tensor) -> Tensor:
    """Real spherical harmonics "n 9" up to degree 2, without their factors, of unit vectors "n 3"."""
    x, y, z = direction.unbind(-1)
    return torch.stack(
        [torch.ones_like(x), x, y, z, x * y, y * z, z * x, x * x - y * y, 3 * z * z - 1], -1
    )


def plot(path: str | Path, latents: Tensor, rotation: Tensor, states: Tensor) -> None:
    """Write a PNG of the coordinates "n L", with the states "K L" in them, and of how they go with
    the direction of view.

    One coordinate: its histogram, and it over tilt and rot. More: the first two, coloured by the
    density of particles, tilt and rot. Raises OutputError.
    """
    from matplotlib.figure import Figure  # slow to import, and runs that draw nothing need not wait

    figure = Figure(figsize=(11.4, 3.9), layout="constrained")
    shares = [
        f"z{i + 1} {'-' if s is None else f'{s:.1%}'}"
        for i, s in enumerate(leakage(latents, rotation))
    ]
    figure.suptitle(
        f"variance that the direction of view explains: {', '.join(shares)}", fontsize=10
    )
    some = slice(None, None, max(1, math.ceil(len(latents) / DRAWN)))
    draw = _one if latents.shape[1] == 1 else _two
    draw(figure, latents[some].double(), _degrees(rotation[some]), states.double())
    for axes in figure.axes[:3]:
        axes.spines[["top", "right"]].set_visible(False)
    with replacing(path) as sibling:
        figure.savefig(sibling, format="png", dpi=140)


def _degrees(rotation: Tensor) -> dict[str, tuple[Tensor, tuple[float, float]]]:
    """RELION's tilt and rot "n" in degrees of rotations "n 3 3", with their ranges."""
    x, y, z = rotation[:, 2].double().unbind(-1)
    return {
        "tilt": (torch.rad2deg(torch.acos(z.clamp(-1, 1))), (0, 180)),
        "rot": (torch.rad2deg(torch.atan2(y, x)), (-180, 180)),
    }


def _one(figure, latents: Tensor, angles: dict, states: Tensor) -> None:
    first, *others = figure.subplots(1, 3)
    z = latents[:, 0]
    first.hist(z.numpy(), bins=60, color="0.75")
    for number, state in enumerate(states[:, 0].tolist(), 1):
        first.axvline(state, color="tab:red", linewidth=0.8)
        first.annotate(
            str(number),
            (state, 1),
            xycoords=("data", "axes fraction"),
            fontsize=6,
            color="tab:red",
            ha="center",
            va="bottom",
        )
    first.set(xlabel="z1", ylabel="particles")
    for axes, (name, (angle, span)) in zip(others, angles.items(), strict=True):
        axes.hist2d(angle.numpy(), z.numpy(), bins=BINS, range=[span, _range(z)], cmap="Blues")
        axes.plot(*_medians(angle, z, span), color="tab:red", linewidth=1.6, label="median")
        axes.set(xlabel=f"{name} of the view (°)", ylabel="z1", xticks=_ticks(span))
    others[0].legend(frameon=False, fontsize=8)


def _two(figure, latents: Tensor, angles: dict, states: Tensor) -> None:
    x = latents[:, 0].numpy()
    y = latents[:, 1].numpy()
    colours = {
        "particles around": (_density(latents[:, :2]), (None, None), "viridis"),
        "tilt of the view (°)": (*angles["tilt"], "viridis"),
        "rot of the view (°)": (*angles["rot"], "twilight"),
    }
    for axes, (name, (values, (low, high), cmap)) in zip(
        figure.subplots(1, 3), colours.items(), strict=True
    ):
        points = axes.scatter(
            x,
            y,
            c=values.numpy(),
            s=3,
            cmap=cmap,
            vmin=low,
            vmax=high,
            linewidths=0,
            rasterized=True,
        )
        figure.colorbar(
            points, ax=axes, label=name, ticks=None if low is None else _ticks((low, high))
        )
        axes.set(xlabel="z1", ylabel="z2")
    axes = figure.axes[0]
    axes.plot(states[:, 0].numpy(), states[:, 1].numpy(), "o", color="tab:red", markersize=4)
    for number, state in enumerate(states[:, :2].tolist(), 1):
        box = {"boxstyle": "round,pad=0.1", "color": "white", "alpha": 0.7, "linewidth": 0}
        axes.annotate(
            str(number),
            state,
            xytext=(4, 4),
            textcoords="offset points",
            fontsize=8,
            color="tab:red",
            bbox=box,
        )


def _density(points: Tensor) -> Tensor:
    """How many of the points "n 2" are in the same of BINS² cells, for each."""
    low = points.amin(0)
    cell = ((points - low) / (points.amax(0) - low).clamp(min=1e-12) * (BINS - 1e-6)).long()
    code = cell[:, 0] * BINS + cell[:, 1]
    return torch.bincount(code, minlength=BINS**2)[code].double()


def _medians(
    angle: Tensor, z: Tensor, span: tuple[float, float], parts: int = 18
) -> tuple[list[float], list[float]]:
    """The median coordinate of the particles in each of `parts` equal pieces of an angle's range,
    where there are five or more.
    """
    low, high = span
    piece = ((angle - low) / (high - low) * parts).long().clamp(0, parts - 1)
    full = [k for k in range(parts) if int((piece == k).sum()) >= 5]
    return [low + (k + 0.5) * (high - low) / parts for k in full], [
        float(z[piece == k].median()) for k in full
    ]


def _range(z: Tensor) -> tuple[float, float]:
    """From the least to the highest value, and never empty."""
    low = float(z.min())
    high = float(z.max())
    return (low, high) if high > low else (low - 0.5, high + 0.5)


def _ticks(span: tuple[float, float]) -> list[float]:
    return [span[0] + (span[1] - span[0]) * i / 4 for i in range(5)]
