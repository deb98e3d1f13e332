"""`instamap demo`: a made-up protein that moves, from particles to maps, a movie and an audit."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from instamap.cli import run
from instamap.cli.simulate import check_seed
from instamap.cli.terminal import show

if TYPE_CHECKING:
    from instamap.workflows.settings import Settings

RECORD = "demo.toml"
ANGLES = "truth_angles.csv"
MAP = "map"  # folders below the demo's
MOTION = "motion"
STATES = "states"
AUDIT = "audit"

COUNT = 2000  # particles
BOX = 40  # pixels
PIXEL_SIZE = 3.25  # Å
SNR = 0.3
PATH_STATES = 9


def demo(
    out: Annotated[
        Path,
        typer.Option("-o", "--out", help="Folder for the particles and, below it, what is found."),
    ] = Path("demo-out"),
    seed: Annotated[int, typer.Option(help="Seed of the particles and of the fits.")] = 0,
    rigid: Annotated[
        bool,
        typer.Option("--rigid", help="A smaller molecule that does not move, and its map alone."),
    ] = False,
    force: Annotated[
        bool, typer.Option("--force", help="Replace an earlier demo that the folder holds.")
    ] = False,
) -> None:
    """Make particles of a protein that opens and closes, and find map and motion in them.

    No data is needed. Two quiet cores take a minute or two: particles.star, particles.mrcs,
    truth.mrc (half open) and truth_angles.csv (degrees, a row for each particle) in the folder;
    below it map/, of all particles as if they were alike; motion/, how they move; states/, maps and
    a movie along the motion; audit/, whether to believe it. --rigid takes some seconds.
    """
    check_seed(seed)
    _check_places(out, seed, rigid, force)
    _write_particles(out, seed, rigid, force)
    map_settings = _settings(out, seed, moving=False)
    run.run_settings(map_settings, run.Place(out / MAP, force), ["workflow", "objective"])
    if not rigid:
        show("\nhow the particles differ: the same particles, with --deform bending-field")
        settings = _settings(out, seed, moving=True)
        run.run_settings(settings, run.Place(out / MOTION, force), ["workflow", "objective"])
        _show_motion(out, force)
    for line in _conclusion(out, rigid):
        show(line)


def _settings(out: Path, seed: int, *, moving: bool) -> "Settings":
    """Settings of the run that finds one map, or the motion."""
    from instamap.plugin.choice import choose
    from instamap.workflows.choose import resolve
    from instamap.workflows.settings import Settings

    deformation = choose("deformation", "bending-field" if moving else "identity")
    particles = out / "particles.star"
    settings = Settings(particles=particles, deformation=deformation, seed=seed)
    return resolve(settings)


def _check_places(out: Path, seed: int, rigid: bool, force: bool) -> None:
    """Raises OutputError where a folder below `out` cannot be written, before any work is done."""
    from instamap.cli import audit, states
    from instamap.workflows import output
    from instamap.workflows.result import run_folder

    output.check(out / MAP, run_folder(_settings(out, seed, moving=False)), force)
    if rigid:
        return
    output.check(out / MOTION, run_folder(_settings(out, seed, moving=True)), force)
    output.check(out / STATES, states.folder_kind(), force)
    output.check(out / AUDIT, audit.folder_kind(), force)


def _write_particles(out: Path, seed: int, rigid: bool, force: bool) -> None:
    """Writes the particles and what is true of them, held as a demo's folder."""
    from instamap.simulate import particle_set
    from instamap.simulate.write_set import FILES
    from instamap.toml_text import write_toml
    from instamap.workflows import output

    kind = output.FolderKind("a demo", RECORD, (*FILES, ANGLES, RECORD))
    with output.reserve(out, kind, force) as place, place.filled() as folder:
        if rigid:
            particle_set.demo(folder, seed=seed)
        else:
            _write_moving_particles(folder, seed)
        files = output.names_in(folder)
        write_toml(folder / RECORD, {"seed": seed, "files": files})
    show(f"simulated particles in {out}/: {', '.join(FILES)}")


def _write_moving_particles(folder: Path, seed: int) -> None:
    from instamap.cli.progress_bars import ProgressBars
    from instamap.simulate import particle_set
    from instamap.simulate.exposure import Exposure
    from instamap.simulate.hinged_protein import HingedProtein, opening_angles

    angle = opening_angles(COUNT, seed)
    protein = HingedProtein(angle, BOX, PIXEL_SIZE)
    with ProgressBars() as progress:
        particle_set.simulate(
            folder,
            protein,
            particle_set.Plan(COUNT),
            Exposure(SNR),
            seed=seed,
            progress=progress,
        )
    rows = [f"{value:.3f}" for value in angle.rad2deg().tolist()]
    (folder / ANGLES).write_text("\n".join(["degrees", *rows, ""]), encoding="utf-8")


def _show_motion(out: Path, force: bool) -> None:
    """Writes states and audit, and says how far the coordinates follow the known angles."""
    from instamap.cli import audit, states

    show("\nmaps and a movie along the motion: instamap states")
    states.states(out / MOTION, out / STATES, path=PATH_STATES, force=force)
    show("\nwhether to believe it: instamap audit")
    audit.audit(out / MOTION, out / AUDIT, force=force)
    show(
        f"\nthe coordinates of the particles and the angles by which they are open ({ANGLES}, known"
        f" here alone) correlate by {_agreement_with_truth(out):.3f}"
    )


def _agreement_with_truth(out: Path) -> float:
    """The correlation of the first coordinate with the true angles; its sign is arbitrary."""
    import torch

    from instamap.motion import conformation_maps
    from instamap.motion.motion_model import MotionModel

    _, angles = conformation_maps.read_csv(out / ANGLES)
    latents = MotionModel.open(out / MOTION).latents
    both = torch.stack([latents[:, 0].double(), angles[:, 0]])
    return abs(float(torch.corrcoef(both)[0, 1]))


def _conclusion(out: Path, rigid: bool) -> list[str]:
    """What to open, and how to go on with one's own data."""
    report = out / (MAP if rigid else MOTION) / "report.html"
    lines = ["", "open", f"  {report}   in a browser: the map in space, curves, verdict"]
    lines.append(f"  {out / MAP / 'map.png'}   slices; the molecule itself is {out / 'truth.mrc'}")
    if not rigid:
        lines.append(f"  {out / STATES / 'movie.gif'}   the motion")
        lines.append(f"  {out / AUDIT / 'audit.png'}   where to believe it")
    return [
        *lines,
        "with particles of your own, posed by RELION, cryoSPARC or cryoDRGN",
        "  instamap doctor particles.star",
        "  instamap reconstruct particles.star --deform bending-field -o moving",
    ]
