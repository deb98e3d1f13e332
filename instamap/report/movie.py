"""A movie of maps from one camera: a surface, projections along the axes, and where among the
particles each state is.
"""

import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from instamap.files import replacing
from instamap.maps import mrc
from instamap.report import render
from instamap.report.slices import VIEWS

RAYS = 144  # along an edge of the surface's picture
MARGIN = 1.1  # of the camera's reach beyond the outermost density
SHOWN = (0.01, 0.999)  # quantiles of all projections that become white and black
WIDTH = 9.6
HEIGHT = 5.4
DPI = 100  # inches, pixels per inch: even numbers of pixels, which films need
RATE = 12  # frames a second
DRAWN = 4000  # particles at most in the picture of coordinates
SAMPLE = 200_000  # voxels of each map, at most, from which the surface's level is found


@dataclass(frozen=True)
class Look:
    """What all frames share. camera: of the surface. low, high: gray values of the projections."""

    camera: render.Camera
    low: float
    high: float


def look(files: list[Path], rays: int = RAYS, level: float | None = None) -> Look:
    """The camera and the gray values for all maps; level: density at the surface, found if None."""
    voxels = []
    shadows = []
    for file in files:
        map, pixel_size = mrc.read(file)
        voxels.append(map.flatten()[:: max(1, map.numel() // SAMPLE)])
        shadows.append(torch.cat([map.sum(axis).flatten() for axis in range(3)]) * pixel_size)
    found, solvent = render.threshold(torch.cat(voxels))
    level = found if level is None else level
    reach = max(_reach(*mrc.read(file), level) for file in files)
    shades = torch.cat(shadows).sort().values
    low, high = (float(shades[round(q * (len(shades) - 1))]) for q in SHOWN)
    return Look(render.Camera(rays, MARGIN * reach, level, solvent), low, high)


def _reach(map: Tensor, pixel_size: float, level: float) -> float:
    """Å from the middle to the outermost voxel above `level`; to the box's face where there is
    none.
    """
    where = (map > level).nonzero() - len(map) // 2
    return pixel_size * (
        float(where.double().norm(dim=1).max()) + 1 if len(where) else len(map) / 2
    )


def write(
    files: list[Path],
    z: Tensor,
    latents: Tensor,
    folder: Path,
    *,
    level: float | None = None,
    rays: int = RAYS,
    watch: Callable[[], None] = lambda: None,
) -> tuple[Look, str]:
    """Write frame_001.png and so on, movie.gif and, where ffmpeg is installed, movie.mp4, both of
    which run there and back.

    files: maps, with coordinates z "K L". latents "n L": of the particles. watch() is told of each
    frame. Returns what all frames share, and a word on the MP4. Raises OutputError.
    """
    seen = look(files, rays, level)
    stage = _Stage(seen, z, latents)
    frames = []
    for number, (file, place) in enumerate(zip(files, z, strict=True), 1):
        frames.append(folder / f"frame_{number:03d}.png")
        stage.draw(*mrc.read(file), place, frames[-1])
        watch()
    _gif(frames, folder / "movie.gif")
    return seen, _mp4(folder, len(frames))


class _Stage:
    """The figure in which everything stays but what each state changes."""

    def __init__(self, seen: Look, z: Tensor, latents: Tensor):
        from matplotlib.figure import (
            Figure,
        )  # slow to import, and runs that draw nothing need not wait

        self.look = seen
        self.figure = Figure(figsize=(WIDTH, HEIGHT), facecolor="white")
        wide = HEIGHT / WIDTH
        self.surface = self.figure.add_axes((0, 0, wide, 1))
        self.surface.axis("off")
        edge = 0.13
        left = wide + 0.012
        self.shadows = []
        for i, (title, _, across, up) in enumerate(VIEWS):
            axes = self.figure.add_axes(
                (left + i * (edge + 0.012), 0.60, edge, edge * WIDTH / HEIGHT)
            )
            axes.set(xticks=[], yticks=[])
            axes.set_title(f"projection {title}", fontsize=8)
            axes.set_xlabel(f"{across} →", fontsize=7, labelpad=2)
            axes.set_ylabel(f"{up} →", fontsize=7, labelpad=1)
            axes.spines[:].set_color("0.8")
            self.shadows.append(axes)
        place = self.figure.add_axes((left + 0.035, 0.12, 3 * edge + 0.024 - 0.045, 0.37))
        self.mark = _coordinates(place, z, latents)
        self.title = self.figure.text(left, 0.95, "", fontsize=11, va="top", family="monospace")

    def draw(self, map: Tensor, pixel_size: float, z: Tensor, file: Path) -> None:
        """Write the frame of one state. Raises OutputError."""
        picture = render.surface(map, pixel_size, self.look.camera).numpy()
        shadows = [map.sum(axis).numpy() * pixel_size for _, axis, _, _ in VIEWS]
        if not self.surface.images:
            self.surface.imshow(picture, interpolation="bilinear", aspect="auto")
            for axes, shadow in zip(self.shadows, shadows, strict=True):
                axes.imshow(
                    shadow,
                    cmap="gray_r",
                    origin="lower",
                    vmin=self.look.low,
                    vmax=self.look.high,
                    interpolation="bilinear",
                )
        for axes, image in zip([self.surface, *self.shadows], [picture, *shadows], strict=True):
            axes.images[0].set_data(image)
        first = z.tolist()[:4]
        self.title.set_text(
            "z = " + ", ".join(f"{v:+.2f}" for v in first) + (" ..." if len(z) > len(first) else "")
        )
        self.mark.set_data(
            [float(z[0])] * 2 if len(z) == 1 else [float(z[0])],
            [0, 1] if len(z) == 1 else [float(z[1])],
        )
        with replacing(file) as sibling:
            self.figure.savefig(sibling, format="png", dpi=DPI)


def _coordinates(axes, z: Tensor, latents: Tensor):
    """Draw the particles' first one or two coordinates and the states' path, and return the mark
    that moves along it.
    """
    axes.tick_params(labelsize=7)
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_xlabel("z1", fontsize=8, labelpad=1)
    if latents.shape[1] == 1:
        axes.hist(latents[:, 0].numpy(), bins=60, color="0.78")
        axes.set_ylabel("particles", fontsize=8, labelpad=2)
        return axes.plot(
            [], [], color="tab:red", linewidth=2, transform=axes.get_xaxis_transform()
        )[0]
    some = latents[:: max(1, len(latents) // DRAWN)]
    axes.plot(some[:, 0].numpy(), some[:, 1].numpy(), ".", markersize=1.5, color="0.75", zorder=0)
    axes.plot(z[:, 0].numpy(), z[:, 1].numpy(), "-", linewidth=1, color="tab:red", alpha=0.5)
    axes.set_ylabel("z2", fontsize=8, labelpad=2)
    return axes.plot([], [], "o", markersize=7, color="tab:red")[0]


def _gif(frames: list[Path], file: Path) -> None:
    """One palette for all frames: colours shall not flicker."""
    from PIL import Image

    whole = []
    for frame in frames:
        with Image.open(frame) as image:
            whole.append(image.convert("RGB"))
    palette = whole[len(whole) // 2].quantize(256)
    shown = [image.quantize(palette=palette, dither=Image.Dither.NONE) for image in whole]
    shown += shown[-2:0:-1]
    with replacing(file) as sibling:
        shown[0].save(
            sibling,
            format="GIF",
            save_all=True,
            append_images=shown[1:],
            duration=round(1000 / RATE),
            loop=0,
        )


def _mp4(folder: Path, count: int) -> str:
    """Write movie.mp4 of the frames in `folder`; what became of it."""
    program = shutil.which("ffmpeg")
    if program is None:
        return "no movie.mp4: ffmpeg is not installed"
    back = f"[0]split[a][b];[b]reverse,trim=start_frame=1:end_frame={count - 1},setpts=PTS-STARTPTS[c];[a][c]concat,format=yuv420p"
    command = [
        program,
        "-loglevel",
        "error",
        "-nostdin",
        "-y",
        "-framerate",
        str(RATE),
        "-i",
        "frame_%03d.png",
        "-filter_complex",
        back if count > 2 else "format=yuv420p",
        "movie.mp4",
    ]
    done = subprocess.run(
        command, cwd=folder, capture_output=True, text=True, errors="replace", check=False
    )
    if done.returncode:  # the maps and the GIF are there, and worth keeping
        (folder / "movie.mp4").unlink(missing_ok=True)
        return (
            f"no movie.mp4: {program} fails:"
            f" {(done.stderr.strip().splitlines() or ['it says nothing'])[-1]}"
        )
    return "movie.mp4"
