"""A picture of how fits went: the held-out likelihood over the steps, and the looks that were kept."""

from pathlib import Path

from instamap.files import replacing


def plot(path: str | Path, looks: dict[str, list[tuple[int, float]]]) -> None:
    """Write a PNG of (step, held-out likelihood in nats per image beyond an empty map) of each
    named fit. Raises OutputError.
    """
    from matplotlib.figure import Figure  # slow to import, and fits that draw nothing need not wait

    figure = Figure(figsize=(6.4, 3.6), layout="constrained")
    axes = figure.subplots()
    axes.axhline(0, color="0.55", linestyle="--", linewidth=0.8)
    for name, points in looks.items():
        best = max(points, key=lambda point: point[1])
        [line] = axes.plot(
            *zip(*points, strict=True),
            linewidth=1.4,
            label=f"{name}: best {best[1]:+.4g} at step {best[0]}",
        )
        axes.plot(*best, "o", color=line.get_color(), markersize=5)
    axes.set(xlabel="step", ylabel="held-out likelihood\n(nats per image beyond an empty map)")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=9)
    with replacing(path) as sibling:
        figure.savefig(sibling, format="png", dpi=140)
