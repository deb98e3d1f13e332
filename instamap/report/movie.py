"""A movie of maps from one camera: a surface, projections along the axes, and a mark among the
particles.
"""

import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from instamap.files import replacing
from instamap.maps import mrc
from instamap.progress import SILENT, Progress
from instamap.report import figure, render
from instamap.report.slices import VIEWS, View, label_axes

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

SURFACE_RAYS = 144  # along an edge of the surface's picture
CAMERA_MARGIN = 1.1  # of the camera's reach beyond the outermost density
GRAY_QUANTILES = (0.01, 0.999)  # of all projections, which become white and black
FRAME_WIDTH = 9.6  # inches
FRAME_HEIGHT = 5.4  # inches
PIXELS_PER_INCH = 100  # even numbers of pixels, which films need
FRAMES_PER_SECOND = 12
MAX_PARTICLES = 4000  # in the picture of coordinates
MAX_SAMPLED_VOXELS = 200_000  # of each map, from which the surface's level is found
MAX_COORDINATES = 4  # in the title
GIF_COLOURS = 256

PROJECTION_EDGE = 0.13  # of a frame's width
PROJECTION_GAP = 0.012
PROJECTION_BOTTOM = 0.60  # of a frame's height


@dataclass(frozen=True)
class MovieCamera:
    """What all frames share.

    surface: the camera of the surface. low, high: gray values of the projections.
    """

    surface: render.Camera
    low: float
    high: float


def find_camera(
    files: list[Path],
    rays: int = SURFACE_RAYS,
    level: float | None = None,
) -> MovieCamera:
    """The camera and the gray values that suit all maps.

    level: density at the surface, found if None.
    """
    voxels = []
    shadows = []
    for file in files:
        volume, pixel_size = mrc.read(file)
        every = max(1, volume.numel() // MAX_SAMPLED_VOXELS)
        voxels.append(volume.flatten()[::every])
        sums = torch.cat([volume.sum(axis).flatten() for axis in range(3)])
        shadows.append(sums * pixel_size)
    found_level, solvent = render.threshold(torch.cat(voxels))
    if level is None:
        level = found_level
    reach = max(_reach(*mrc.read(file), level) for file in files)
    camera = render.Camera(
        size=rays,
        reach=CAMERA_MARGIN * reach,
        level=level,
        solvent=solvent,
    )
    shades = torch.cat(shadows).sort().values
    last = len(shades) - 1
    low, high = (float(shades[round(quantile * last)]) for quantile in GRAY_QUANTILES)
    return MovieCamera(camera, low, high)


def _reach(volume: Tensor, pixel_size: float, level: float) -> float:
    """Å from the middle to the outermost voxel above `level`; to the box's face where there is
    none.
    """
    where = (volume > level).nonzero() - len(volume) // 2
    if not len(where):
        return pixel_size * (len(volume) / 2)
    distance = where.double().norm(dim=1)
    return pixel_size * (float(distance.max()) + 1)


def write(
    files: list[Path],
    z: Tensor,
    latents: Tensor,
    folder: Path,
    *,
    level: float | None = None,
    rays: int = SURFACE_RAYS,
    progress: Progress = SILENT,
) -> tuple[MovieCamera, str]:
    """Write frame_001.png and so on, movie.gif and, where ffmpeg is installed, movie.mp4.

    Both movies run there and back. files: maps, with coordinates z "K L". latents "n L": of the
    particles. Returns what all frames share, and a word on the MP4. Raises OutputError.
    """
    camera = find_camera(files, rays, level)
    movie_frame = MovieFrame(camera, z, latents)
    frames = []
    for number, (file, place) in enumerate(zip(files, z, strict=True), 1):
        frame = folder / f"frame_{number:03d}.png"
        volume, pixel_size = mrc.read(file)
        movie_frame.draw(volume, pixel_size, place, frame)
        frames.append(frame)
        progress.counted("frames", number, len(files))
    _write_gif(frames, folder / "movie.gif")
    return camera, _write_mp4(folder, len(frames))


class MovieFrame:
    """The figure in which everything stays but what each conformation changes."""

    def __init__(self, camera: MovieCamera, z: Tensor, latents: Tensor) -> None:
        self.camera = camera
        self.figure = figure.blank(FRAME_WIDTH, FRAME_HEIGHT, facecolor="white")
        square = FRAME_HEIGHT / FRAME_WIDTH
        self.surface = self.figure.add_axes((0, 0, square, 1))
        self.surface.axis("off")
        left = square + PROJECTION_GAP
        step = PROJECTION_EDGE + PROJECTION_GAP
        self.projections = [
            _projection_axes(self.figure, view, left + number * step)
            for number, view in enumerate(VIEWS)
        ]
        width = 3 * PROJECTION_EDGE + 2 * PROJECTION_GAP - 0.045
        coordinates = self.figure.add_axes((left + 0.035, 0.12, width, 0.37))
        self.mark = _draw_coordinates(coordinates, z, latents)
        self.title = self.figure.text(
            left,
            0.95,
            "",
            fontsize=11,
            va="top",
            family="monospace",
        )

    def draw(self, volume: Tensor, pixel_size: float, z: Tensor, file: Path) -> None:
        """Write the frame of one conformation. Raises OutputError."""
        surface = render.surface(volume, pixel_size, self.camera.surface)
        self._show(self.surface, surface, aspect="auto")
        for axes, view in zip(self.projections, VIEWS, strict=True):
            projection = volume.sum(view.axis) * pixel_size
            self._show(
                axes,
                projection,
                cmap="gray_r",
                origin="lower",
                vmin=self.camera.low,
                vmax=self.camera.high,
            )
        self.title.set_text(_title(z))
        first = float(z[0])
        if len(z) == 1:
            self.mark.set_data([first, first], [0, 1])
        else:
            self.mark.set_data([first], [float(z[1])])
        figure.save(self.figure, file, PIXELS_PER_INCH)

    def _show(self, axes: "Axes", image: Tensor, **style: Any) -> None:
        """Put an image in the place of the last one; `style` is that of the first."""
        if axes.images:
            axes.images[0].set_data(image.numpy())
        else:
            axes.imshow(image.numpy(), interpolation="bilinear", **style)


def _projection_axes(page: "Figure", view: View, left: float) -> "Axes":
    height = PROJECTION_EDGE * FRAME_WIDTH / FRAME_HEIGHT
    axes = page.add_axes((left, PROJECTION_BOTTOM, PROJECTION_EDGE, height))
    axes.set_title(f"projection {view.title}", fontsize=8)
    label_axes(axes, view, size=7, distance=1)
    axes.spines[:].set_color("0.8")
    return axes


def _title(z: Tensor) -> str:
    """The first coordinates "L" in words."""
    shown = z.tolist()[:MAX_COORDINATES]
    numbers = ", ".join(f"{value:+.2f}" for value in shown)
    rest = " ..." if len(z) > len(shown) else ""
    return f"z = {numbers}{rest}"


def _draw_coordinates(axes: "Axes", z: Tensor, latents: Tensor) -> "Line2D":
    """Draw the particles' first one or two coordinates and the conformations' path.

    Returns the mark that moves along it.
    """
    axes.tick_params(labelsize=7)
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_xlabel("z1", fontsize=8, labelpad=1)
    if latents.shape[1] == 1:
        axes.hist(latents[:, 0].numpy(), bins=60, color="0.78")
        axes.set_ylabel("particles", fontsize=8, labelpad=2)
        [mark] = axes.plot(
            [],
            [],
            color="tab:red",
            linewidth=2,
            transform=axes.get_xaxis_transform(),
        )
        return mark
    every = max(1, len(latents) // MAX_PARTICLES)
    x, y = latents[::every, :2].unbind(1)
    axes.plot(
        x.numpy(),
        y.numpy(),
        ".",
        markersize=1.5,
        color="0.75",
        zorder=0,
    )
    path_x, path_y = z[:, :2].unbind(1)
    axes.plot(
        path_x.numpy(),
        path_y.numpy(),
        "-",
        linewidth=1,
        color="tab:red",
        alpha=0.5,
    )
    axes.set_ylabel("z2", fontsize=8, labelpad=2)
    [mark] = axes.plot([], [], "o", markersize=7, color="tab:red")
    return mark


def _write_gif(frames: list[Path], file: Path) -> None:
    """Write an animation with one palette for all frames: colours shall not flicker."""
    from PIL import Image

    coloured = []
    for frame in frames:
        with Image.open(frame) as image:
            coloured.append(image.convert("RGB"))
    palette = coloured[len(coloured) // 2].quantize(GIF_COLOURS)
    shown = [image.quantize(palette=palette, dither=Image.Dither.NONE) for image in coloured]
    back = shown[-2:0:-1]
    with replacing(file) as sibling:
        shown[0].save(
            sibling,
            format="GIF",
            save_all=True,
            append_images=[*shown[1:], *back],
            duration=round(1000 / FRAMES_PER_SECOND),
            loop=0,
        )


def _write_mp4(folder: Path, count: int) -> str:
    """Write movie.mp4 of the frames in `folder`; what became of it."""
    program = shutil.which("ffmpeg")
    if program is None:
        return "no movie.mp4: ffmpeg is not installed"
    there_and_back = (
        f"[0]split[a][b];[b]reverse,trim=start_frame=1:end_frame={count - 1},"
        "setpts=PTS-STARTPTS[c];[a][c]concat,format=yuv420p"
    )
    command = [
        program,
        "-loglevel",
        "error",
        "-nostdin",
        "-y",
        "-framerate",
        str(FRAMES_PER_SECOND),
        "-i",
        "frame_%03d.png",
        "-filter_complex",
        there_and_back if count > 2 else "format=yuv420p",
        "movie.mp4",
    ]
    finished = subprocess.run(
        command,
        cwd=folder,
        capture_output=True,
        text=True,
        errors="replace",
        check=False,
    )
    if not finished.returncode:
        return "movie.mp4"
    # the maps and the GIF are there, and worth keeping
    (folder / "movie.mp4").unlink(missing_ok=True)
    complaint = finished.stderr.strip().splitlines() or ["it says nothing"]
    return f"no movie.mp4: {program} fails: {complaint[-1]}"
