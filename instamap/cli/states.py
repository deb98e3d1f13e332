"""`instamap states`: maps, half maps and a movie of the states of a motion."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from instamap.cli import run
from instamap.cli.arguments import (
    Device,
    MotionRun,
    OutFolder,
    ParticlesOfRun,
    Resume,
    StatesFile,
)
from instamap.cli.terminal import show
from instamap.cli.text_table import columns
from instamap.errors import OptionError

if TYPE_CHECKING:
    from torch import Tensor

    from instamap.data.particle_table import ParticleTable
    from instamap.motion.conformation_maps import Conformation
    from instamap.motion.local_maps import LocalRange
    from instamap.motion.motion_model import MotionModel
    from instamap.progress import Progress
    from instamap.workflows.output import FolderKind

CLUSTERS = 8
FRAMES = 20  # where nothing else is said
RECORD = "states.json"
STAR = "particles_latents.star"
MAY_WRITE = (
    RECORD,
    "particles_latents.*",
    "states.csv",
    "latents.png",
    "movie.gif",
    "movie.mp4",
    "state_[0-9][0-9][0-9]*.mrc",
    "state_[0-9][0-9][0-9]*.mrc.gz",
    "morph_[0-9][0-9][0-9]*.mrc",
    "morph_[0-9][0-9][0-9]*.mrc.gz",
    "frame_[0-9][0-9][0-9]*.png",
)


@dataclass(frozen=True)
class Selection:
    """Coordinates of the states "K L", and how they were selected, as states.json says it.

    notes: what is to be said of it.
    """

    z: "Tensor"
    how: dict[str, Any]
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class MovieChoice:
    """Frames of the movie, 0 for none, and the level of the surface that it shows, None: found."""

    frames: int
    level: float | None


@dataclass(frozen=True)
class MapChoice:
    """How maps are written. local: with maps of local resolution. compress: by gzip."""

    local: bool
    compress: bool

    @property
    def ending(self) -> str:
        """The end of the maps' names."""
        from instamap.motion import conformation_maps

        return conformation_maps.PACKED if self.compress else conformation_maps.PLAIN


@dataclass(frozen=True)
class WrittenStates:
    """What was written. local: local resolution of each state, empty where it was not asked for.
    movie: a word on the MP4; empty where there is no movie.
    """

    states: "list[Conformation]"
    local: "list[LocalRange | None]"
    pose_dependence: list[float | None]
    movie: str


def states(
    motion: MotionRun,
    out: OutFolder = Path("states"),
    kmeans: Annotated[
        int | None,
        typer.Option(metavar="N", help=f"States: centres of N clusters.  [default: {CLUSTERS}]"),
    ] = None,
    path: Annotated[
        int | None, typer.Option(metavar="N", help="States: N along the motion, from end to end.")
    ] = None,
    at: StatesFile = None,
    frames: Annotated[
        int | None,
        typer.Option(
            min=0,
            metavar="N",
            help=f"Frames of the movie; 0 for none.  [default: {FRAMES}; the states of --path]",
        ),
    ] = None,
    level: Annotated[
        float | None,
        typer.Option(help="Density at the surface that the movie shows.  [default: found]"),
    ] = None,
    local: Annotated[
        bool, typer.Option("--local", help="Find local resolution of every state, from half maps.")
    ] = False,
    compress: Annotated[
        bool,
        typer.Option("--compress", help="Write maps as .mrc.gz, which takes a fifth of the room."),
    ] = False,
    particles: ParticlesOfRun = None,
    seed: Annotated[int, typer.Option(help="Seed of the clusters.")] = 0,
    device: Device = "cpu",
    force: Annotated[
        bool, typer.Option("--force", help="Replace states that the folder holds.")
    ] = False,
    resume: Resume = False,
) -> None:
    """Write maps and half maps of states of a motion, a movie, and the particles' coordinates.

    state_001.mrc and so on, with half maps of both independent fits; states.csv, with the number of
    particles nearest to each state and the resolution at which its half maps agree; morph_001.mrc
    and so on, between clusters or rows (--path needs none: its states are the morph); the movie as
    frame_001.png and so on, movie.gif and, where ffmpeg is installed, movie.mp4; latents.png, which
    shows the coordinates and whether they go with the pose; particles_latents.star, the run's STAR
    file with columns instamapLatent1 and so on; states.json.

    --local adds state_001_locres.mrc and so on: Å around each voxel, all judged in one window, by
    which a state's surface can be coloured.

    With one coordinate --path leads from the 2nd to the 98th percentile; with more, through means
    of particles along the first principal axis.
    """
    _check_options(kmeans, path, at, frames)
    from instamap.cli.motion_inputs import device_for, hint_of_datadir, particles_of_run
    from instamap.cli.progress_bars import ProgressBars
    from instamap.motion.motion_model import MotionModel
    from instamap.workflows import output

    kind = folder_kind()
    output.check(out, kind, force)
    place = device_for(device)
    model = MotionModel.open(motion).to(place)
    selection = _select(model, kmeans, path, at, seed)
    table = particles_of_run(model, particles)
    shown = MovieChoice(FRAMES if frames is None else frames, level)
    as_maps = MapChoice(local, compress)
    asked = _asked(motion, model, selection, shown)
    goes_to = run.Place(out, force, resume)
    inputs = [file for file in (table.path, at) if file is not None]
    with (
        output.reserve(out, kind, force, inputs) as held,
        ProgressBars() as bars,
        run.kept(goes_to, asked, bars) as progress,
        held.filled() as folder,
    ):
        written = _write(folder, model, table, selection, shown, as_maps, progress)
    for line in selection.notes:
        show(line)
    show(columns(_rows(written)))
    for line in _conclusion(written):
        show(line)
    for line in hint_of_datadir(table, out / STAR, model.settings.get("datadir")):
        show(line)
    show(f"everything in {out}/: open state_*{as_maps.ending} as a series, look at latents.png")


def folder_kind() -> "FolderKind":
    """The folders that the command writes."""
    from instamap.workflows.output import FolderKind

    return FolderKind("states", RECORD, MAY_WRITE)


def _check_options(
    kmeans: int | None, path: int | None, at: Path | None, frames: int | None
) -> None:
    """Raises OptionError where options say different things."""
    if sum(choice is not None for choice in (kmeans, path, at)) > 1:
        raise OptionError("states are chosen in two ways; give one of --kmeans, --path and --at")
    if path is not None and frames:
        raise OptionError(
            f"frames is {frames}, but those of --path are its {path} states; leave out --frames, or"
            " give 0 for no movie"
        )


def _select(
    motion: "MotionModel", kmeans: int | None, path: int | None, at: Path | None, seed: int
) -> Selection:
    """The states that a person asked for, or the usual ones."""
    from instamap.motion import conformation_maps

    latents = motion.latents.double()
    if at is not None:
        return Selection(conformation_maps.read(at, latents.shape[1]), {"at": str(at)})
    if path is not None:
        z = conformation_maps.path(latents, path, seed)
        return Selection(z, {"path": path, "seed": seed})
    different = len(latents.unique(dim=0))
    count = min(CLUSTERS, different) if kmeans is None else kmeans
    z = conformation_maps.clusters(latents, count, seed)
    notes = [_fewer(count)] if kmeans is None and count < CLUSTERS else []
    return Selection(z, {"kmeans": count, "seed": seed}, notes)


def _asked(
    folder: Path, motion: "MotionModel", selection: Selection, shown: MovieChoice
) -> dict[str, Any]:
    """All on which the maps depend, by which a stopped run is known: plain values."""
    from instamap import checksums
    from instamap.motion.motion_model import SETTINGS
    from instamap.version import __version__

    sums = {name: checksums.of_file(folder / name) for name in [SETTINGS, *motion.files()]}
    return {
        "instamap": __version__,
        "states": selection.how,
        "frames": shown.frames,
        "motion": checksums.of_values(sums),
        "z": selection.z.tolist(),
    }


def _fewer(count: int) -> str:
    """What is said where the usual number of states is more than there are."""
    if count == 1:
        return (
            "all particles have the same coordinates (the run found no motion): there is one state"
        )
    return (
        f"particles have {count} different coordinates: there are {count} states instead of the"
        f" usual {CLUSTERS}"
    )


def _write(
    folder: Path,
    motion: "MotionModel",
    table: "ParticleTable",
    selection: Selection,
    shown: MovieChoice,
    as_maps: MapChoice,
    progress: "Progress",
) -> WrittenStates:
    """Writes everything to `folder`."""
    from instamap.data.writers import write_latents
    from instamap.motion import conformation_maps, local_maps, pose_dependence
    from instamap.report import coordinates_plot
    from instamap.version import __version__
    from instamap.workflows.output import names_in
    from instamap.workflows.record import write_json

    latents = motion.latents.double()
    ending = as_maps.ending
    written = conformation_maps.write(motion, selection.z, folder, progress, ending)
    local = local_maps.write_local_resolution(folder, written, progress) if as_maps.local else []
    maps = [folder / one.file for one in written]
    words, level = _write_movie(folder, motion, selection, maps, shown, ending, progress)
    coordinates_plot.plot(folder / "latents.png", latents, table.rotation, selection.z)
    write_latents(table, latents, folder / STAR)
    shares = pose_dependence.explained_by_view(latents, table.rotation)
    record = {"states": selection.how, "level": level, "leakage": shares}
    write_json(folder / RECORD, {"instamap": __version__, "files": names_in(folder), **record})
    return WrittenStates(written, local, shares, words)


def _write_movie(
    folder: Path,
    motion: "MotionModel",
    selection: Selection,
    maps: list[Path],
    shown: MovieChoice,
    ending: str,
    progress: "Progress",
) -> tuple[str, float | None]:
    """Writes the maps between the states, unless these are a path, and the movie.

    Returns a word on the MP4 and the level of the surface, or "" and None where nothing moves.
    """
    from instamap.motion import conformation_maps
    from instamap.report import movie

    z = selection.z
    if shown.frames < 2 or len(z) < 2:
        return "", None
    if "path" not in selection.how:
        z = conformation_maps.through(z, shown.frames)
        maps = conformation_maps.write_morph(motion, z, folder, progress, ending)
    latents = motion.latents.double()
    camera, words = movie.write(maps, z, latents, folder, level=shown.level, progress=progress)
    return words, camera.surface.level


def _rows(written: WrittenStates) -> list[list[str]]:
    """The states in columns."""
    states = written.states
    coordinates = [f"z{number}" for number in range(1, len(states[0].z) + 1)]
    heading = ["state", *coordinates, "particles", "half-map FSC = 0.143"]
    if written.local:
        heading.append("local, median (tenths)")
    rows = [heading]
    for number, state in enumerate(states):
        resolution = "-" if state.resolution is None else f"{state.resolution:.2f} Å"
        z = [f"{value:+.3f}" for value in state.z]
        row = [state.file, *z, str(state.particles), resolution]
        if written.local:
            row.append(_local_words(written.local[number]))
        rows.append(row)
    return rows


def _local_words(local: "LocalRange | None") -> str:
    """The local resolution of a state, in a word."""
    if local is None:
        return "-"
    return f"{local.median:.2f} Å ({local.best:.2f} to {local.worst:.2f})"


def _conclusion(written: WrittenStates) -> list[str]:
    """How the coordinates go with the pose, and whether there is a movie."""
    shares = []
    for number, share in enumerate(written.pose_dependence, 1):
        word = "unknown" if share is None else f"{share:.1%}"
        shares.append(f"z{number} {word}")
    lines = [
        f"variance of coordinates that the direction of view explains: {', '.join(shares)} (of"
        " motion alone about none; poses that err make it more)"
    ]
    if written.movie:
        lines.append(f"movie: movie.gif, {written.movie}")
    return lines
