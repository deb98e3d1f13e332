"""A picture of how fits went: the held-out likelihood over the steps, and the best of each fit."""

from pathlib import Path
from typing import TYPE_CHECKING

from instamap.report import figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Evaluations = list[tuple[int, float]]


def plot(path: str | Path, evaluations: dict[str, Evaluations]) -> None:
    """Write a PNG of the evaluations of each named fit.

    An evaluation is a step and the held-out likelihood in nats per image beyond an empty map.
    Raises OutputError.
    """
    figure.save(drawn(evaluations), path, dpi=140)


def drawn(evaluations: dict[str, Evaluations]) -> "Figure":
    """The figure that `plot` writes."""
    page = figure.framed(6.4, 3.6)
    axes = page.subplots()
    axes.axhline(0, color="0.55", linestyle="--", linewidth=0.8)
    for name, points in evaluations.items():
        steps, likelihoods = zip(*points, strict=True)
        best_step, best = max(points, key=lambda point: point[1])
        label = f"{name}: best {best:+.4g} at step {best_step}"
        [line] = axes.plot(steps, likelihoods, linewidth=1.4, label=label)
        axes.plot(
            best_step,
            best,
            "o",
            color=line.get_color(),
            markersize=5,
        )
    axes.set_xlabel("step")
    axes.set_ylabel("held-out likelihood\n(nats per image beyond an empty map)")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=9)
    return page
