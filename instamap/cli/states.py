"""`instamap states`: maps, half maps and a movie of the states of a motion."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from instamap.cli.output_checks import check_folder
from instamap.cli.text_table import columns
from instamap.errors import OptionError

if TYPE_CHECKING:
    from instamap.motion.motion_model import MotionModel

CLUSTERS = 8
FRAMES = 20  # where nothing else is said
RECORD = "states.json"
STAR = "particles_latents.star"
# What an earlier run may have left: it goes whole, so that no map of it is taken for one of the new
# run.
WRITTEN = (
    RECORD,
    STAR,
    "states.csv",
    "latents.png",
    "movie.gif",
    "movie.mp4",
    "state_*.mrc",
    "morph_*.mrc",
    "frame_*.png",
)


def states(
    motion: Annotated[
        Path,
        typer.Argument(help="Folder of a run with --deform bending-field.", show_default=False),
    ],
    out: Annotated[Path, typer.Option("-o", "--out", help="Folder to write to.")] = Path("states"),
    kmeans: Annotated[
        int | None,
        typer.Option(metavar="N", help=f"States: centres of N clusters.  [default: {CLUSTERS}]"),
    ] = None,
    path: Annotated[
        int | None, typer.Option(metavar="N", help="States: N along the motion, from end to end.")
    ] = None,
    at: Annotated[
        Path | None,
        typer.Option(
            metavar="Z.csv", help="States: a row each, under a header z1,z2,... or without."
        ),
    ] = None,
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
    particles: Annotated[
        Path | None, typer.Option(help="STAR file of the run, if it is no longer where it was.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the clusters.")] = 0,
    force: Annotated[
        bool, typer.Option("--force", help="Replace states that the folder holds.")
    ] = False,
) -> None:
    """Write maps and half maps of states of a motion, a movie, and the particles' coordinates.

    state_001.mrc and so on, with half maps of both independent fits; states.csv, with the number of
    particles nearest to each state and the resolution at which its half maps agree; morph_001.mrc
    and so on, between clusters or rows (--path needs none: its states are the morph); the movie as
    frame_001.png and so on, movie.gif and, where ffmpeg is installed, movie.mp4; latents.png, which
    shows the coordinates and whether they go with the pose; particles_latents.star, the run's STAR
    file with columns instamapLatent1 and so on; states.json.

    With one coordinate --path leads from the 2nd to the 98th percentile; with more, through means
    of particles along the first principal axis.
    """
    from instamap.motion.motion_model import MotionModel
    from instamap.workflows import output

    if sum(choice is not None for choice in (kmeans, path, at)) > 1:
        raise OptionError("states are chosen in two ways; give one of --kmeans, --path and --at")
    if path is not None and frames:
        raise OptionError(
            f"frames is {frames}, but those of --path are its {path} states; leave out --frames, or"
            " give 0 for no movie"
        )
    check_folder(out, (RECORD,), "states", force)
    given = MotionModel.open(motion)
    z, how = _choose(given, kmeans, path, at, seed)
    with output.staged(out, force) as folder:
        few = kmeans is None and path is None and at is None and len(z) < CLUSTERS
        lines = [_fewer(len(z))] if few else []
        lines += _fill(
            folder, given, z, how, FRAMES if frames is None else frames, level, particles, out
        )
        for old in [old for name in WRITTEN for old in out.glob(name)]:
            old.unlink()
    typer.echo("\n".join(lines))


def _choose(motion: "MotionModel", kmeans: int | None, path: int | None, at: Path | None, seed: int):
    """Coordinates of the states "K L", and how they were chosen."""
    from instamap.motion import conformation_maps as choose

    latents = motion.latents.double()
    if at is not None:
        return choose.read(at, latents.shape[1]), {"at": str(at)}
    if path is not None:
        return choose.path(latents, path, seed), {"path": path, "seed": seed}
    count = min(CLUSTERS, len(latents.unique(dim=0))) if kmeans is None else kmeans
    return choose.clusters(latents, count, seed), {"kmeans": count, "seed": seed}


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


def _fill(
    folder: Path,
    motion: "MotionModel",
    z,
    how: dict,
    frames: int,
    level: float | None,
    particles: Path | None,
    out: Path,
) -> list[str]:
    """Write everything to `folder`, from where it goes to `out`; what to say of it."""
    import json

    from instamap.cli.progress import Stages
    from instamap.data import writers
    from instamap.motion import conformation_maps as make
    from instamap.motion import pose_dependence
    from instamap.report import coordinates_plot, movie

    table = writers.table_of_run(motion.settings, particles, len(motion.latents))
    latents = motion.latents.double()
    rotation = table.rotation
    moving = frames > 1 and len(z) > 1
    morph = make.through(z, frames) if moving and "path" not in how else None
    shown = z if morph is None else morph
    record = {"states": how, "level": None, "leakage": pose_dependence.leakage(latents, rotation)}
    with Stages() as stages:
        total = len(z) + (0 if morph is None else len(morph))
        step = stages.counter("maps", total)
        done = make.write(motion, z, folder, step)
        files = [folder / state.file for state in done]
        if morph is not None:
            files = make.write_morph(motion, morph, folder, step)
        film = ""
        if moving:
            seen, film = movie.write(files, shown, latents, folder, level=level, progress=stages)
            record["level"] = seen.surface.level
    coordinates_plot.plot(folder / "latents.png", latents, rotation, z)
    writers.write_latents(table, latents, folder / STAR)
    (folder / RECORD).write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    place = writers.datadir_for(table, out / STAR, _datadir(motion))
    return [*_rows(done), *_conclusion(record["leakage"], film, place, out)]


def _datadir(motion: "MotionModel") -> Path | None:
    found = motion.settings.get("datadir")
    return Path(found) if found else None


def _rows(done: list) -> list[str]:
    """The states in columns."""
    head = [
        "state",
        *[f"z{i + 1}" for i in range(len(done[0].z))],
        "particles",
        "half-map FSC = 0.143",
    ]
    rows = []
    for state in done:
        found = "-" if state.resolution is None else f"{state.resolution:.2f} Å"
        rows.append([state.file, *[f"{v:+.3f}" for v in state.z], str(state.particles), found])
    return [columns([head, *rows])]


def _conclusion(leaks: list[float | None], film: str, place: Path | None, out: Path) -> list[str]:
    shares = ", ".join(
        f"z{i + 1} {'unknown' if share is None else f'{share:.1%}'}"
        for i, share in enumerate(leaks)
    )
    lines = [
        f"variance of coordinates that the direction of view explains: {shares} (motion alone:"
        " about none)"
    ]
    if film:
        lines.append(f"movie: movie.gif, {film}")
    if place:
        lines.append(f"images are named as before: read {STAR} with --datadir {place}")
    return [*lines, f"everything in {out}/: open state_*.mrc as a series, look at latents.png"]
