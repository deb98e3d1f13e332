"""The picture at the top of the README, of what the demo found.

    instamap demo -o demo-out
    python -m benchmarks.pictures.map_and_motion demo-out docs/figures/map-and-motion.png

All surfaces are seen by one camera, at one level.
"""

import argparse
from pathlib import Path

import numpy as np

from instamap.maps import mrc
from instamap.report import figure, render

RAYS = 150  # along an edge of each surface's picture
REACH = 0.42  # of the box's edge
LEVEL = 1.2  # of the level that the report begins with


def draw(folder: Path, picture: Path) -> None:
    """Draws what a demo's folder holds: the map, and the ends and the middle of the motion."""
    states = sorted((folder / "states").glob("state_[0-9][0-9][0-9].mrc"))
    if not _opens_upwards(folder):
        states.reverse()
    titles = {
        folder / "map" / "map.mrc": "2,000 particles, one map",
        states[0]: "their motion: closed",
        states[len(states) // 2]: "half open",
        states[-1]: "open",
    }
    maps = [mrc.read(file) for file in titles]
    volume, pixel_size = maps[1]
    level, solvent = render.threshold(volume.flatten())
    reach = REACH * len(volume) * pixel_size
    camera = render.Camera(size=RAYS, reach=reach, level=LEVEL * level, solvent=solvent)
    page = figure.framed(11.2, 3.3)
    axes = page.subplots(1, len(maps))
    for one, (volume, size), title in zip(axes, maps, titles.values(), strict=True):
        one.imshow(render.surface(volume, size, camera).numpy())
        one.set_title(title, fontsize=11)
        one.axis("off")
    figure.save(page, picture, dpi=100)


def _opens_upwards(folder: Path) -> bool:
    """Whether larger coordinates mean a protein that is more open."""
    angles = np.loadtxt(folder / "truth_angles.csv", skiprows=1)
    latents = np.load(folder / "motion" / "latents.npy")[:, 0]
    return bool(np.corrcoef(angles, latents)[0, 1] > 0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="what `instamap demo` wrote")
    parser.add_argument("picture", type=Path, help="PNG to write")
    arguments = parser.parse_args()
    draw(arguments.folder, arguments.picture)


if __name__ == "__main__":
    main()
