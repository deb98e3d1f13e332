"""`instamap simulate`: particles with a known answer, of an atomic model or of a map."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from instamap.cli.arguments import OutFolder
from instamap.cli.flags import seed_range
from instamap.cli.terminal import show
from instamap.errors import OptionError

if TYPE_CHECKING:
    from instamap.simulate.write_set import Specimen

RECORD = "simulate.toml"
MODEL = "ATOMIC MODELS"


def atomic(flag: str, help: str) -> Any:
    """An option that only a model has."""
    return typer.Option(flag, help=help, rich_help_panel=MODEL, show_default=False)


def plain(*flags: str, help: str) -> Any:
    """An option whose default the help names."""
    return typer.Option(*flags, help=help, show_default=False)


def simulate(
    source: Annotated[
        Path,
        typer.Argument(
            metavar="MODEL",
            help="PDB or mmCIF file, perhaps gzipped, or a map.mrc.",
            show_default=False,
        ),
    ],
    out: OutFolder = Path("simulated"),
    count: Annotated[
        int | None,
        plain("-n", "--count", help="Particles.  [default: 10000, or the rows of --poses]"),
    ] = None,
    box: Annotated[
        int | None, plain("--box", help="Pixels along an edge.  [default: 64, or the map's]")
    ] = None,
    pixel: Annotated[
        float | None, plain("--pixel", help="Å per pixel.  [default: 3, or the map's]")
    ] = None,
    snr: Annotated[
        float,
        typer.Option(
            help="Variance of the signal, after contrast transfer, over that of the noise."
        ),
    ] = 0.1,
    noise: Annotated[
        str, typer.Option(help="white, or coloured: falling with frequency.")
    ] = "white",
    defocus: Annotated[
        str | None,
        plain(
            "--defocus", help="Å, or LOW:HIGH, between which it is drawn.  [default: 8000:20000]"
        ),
    ] = None,
    poses: Annotated[
        str, typer.Option(help="uniform, or a STAR file whose poses, origins and optics are taken.")
    ] = "uniform",
    shift: Annotated[
        float | None,
        plain("--shift", help="Standard deviation of the origins, in Å.  [default: a pixel]"),
    ] = None,
    scale: Annotated[
        float, typer.Option(help="Standard deviation of the images' contrast about 1.")
    ] = 0.0,
    offset: Annotated[
        float,
        typer.Option(help="Standard deviation of the images' background, in that of the noise."),
    ] = 0.0,
    b_factor: Annotated[
        float | None, atomic("--b-factor", "Å², of every atom.  [default: the file's]")
    ] = None,
    solvent: Annotated[
        float | None,
        atomic(
            "--solvent", "Share of atoms that displaced water takes, such as 0.6.  [default: 0]"
        ),
    ] = None,
    point_mass: Annotated[
        float | None,
        atomic("--point-mass", "Share of atoms that a point adds, such as 1e-4.  [default: 0]"),
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of all that is drawn.")] = 0,
    force: Annotated[
        bool, typer.Option("--force", help="Replace particles that the folder holds.")
    ] = False,
) -> None:
    """Images of a model or a map with known poses: particles.star, particles.mrcs, truth.mrc and a
    record.

    Models need gemmi (pip install 'instamap[models]'). Atoms scatter electrons as neutral ones do,
    blurred by their B-factors; the first model of a file counts, its water does not, and its centre
    of mass becomes the origin. truth.mrc is in the unit of the images per Å, in which the noise has
    variance 1.
    """
    from instamap.cli.progress_bars import ProgressBars
    from instamap.simulate import particle_set
    from instamap.simulate.exposure import Exposure
    from instamap.simulate.write_set import FILES
    from instamap.toml_text import write_toml
    from instamap.workflows import output

    check_seed(seed)
    star = None if poses == "uniform" else Path(poses)
    plan = particle_set.Plan(count, star, shift, _range(defocus))
    exposure = Exposure(snr, noise, scale, offset)
    inputs = [path for path in (source, star) if path is not None and path.exists()]
    kind = output.FolderKind("particles", RECORD, (*FILES, RECORD))
    output.check(out, kind, force, inputs)
    of_models = {"b_factor": b_factor, "solvent": solvent, "point_mass": point_mass}
    given = {name: value for name, value in of_models.items() if value is not None}
    specimen, facts = _specimen(source, box, pixel, given)
    with (
        output.reserve(out, kind, force, inputs) as place,
        place.filled() as folder,
        ProgressBars() as progress,
    ):
        written = particle_set.simulate(
            folder, specimen, plan, exposure, seed=seed, progress=progress
        )
        record = {
            "source": str(source),
            "files": list(FILES),
            "seed": seed,
            "box": specimen.box,
            "pixel_size": specimen.pixel_size,
            **facts,
            **plan.record(specimen.pixel_size),
            **exposure.record(specimen.box),
            **written.record(),
        }
        write_toml(folder / RECORD, record)
    show(
        f"{len(written.contrast)} images of {specimen.box} px at {specimen.pixel_size:g} Å in"
        f" {out}/: {', '.join((*FILES, RECORD))}"
    )


def check_seed(seed: int) -> None:
    """Raises OptionError for a seed that no reconstruction could have."""
    low, high = seed_range()
    if not low <= seed <= high:
        raise OptionError(f"seed is {seed}; it must be from {low:.0f} to {high:.0f}")


def _specimen(
    path: Path, box: int | None, pixel: float | None, of_models: dict[str, Any]
) -> "tuple[Specimen, dict[str, Any]]":
    """The model or the map as something to be imaged, and what the record says of it.

    of_models: what models alone have.
    """
    from instamap.maps import mrc
    from instamap.simulate import atomic_model, particle_set

    if atomic_model.is_model(path):
        lattice = {"box": box, "pixel_size": pixel}
        given: dict[str, Any] = {k: value for k, value in lattice.items() if value is not None}
        potential = particle_set.of_model(path, **given, **of_models)
        return potential, {**of_models, "centre": potential.centre.tolist()}
    for name, value in of_models.items():
        raise OptionError(
            f"{name} is {value:g}, but '{path}' is taken for a map, which has no atoms; leave out"
            f" --{name.replace('_', '-')}"
        )
    return particle_set.of_map(*mrc.read(path), box, pixel), {}


def _range(text: str | None) -> tuple[float, float] | None:
    """The ends of LOW:HIGH, or of one value."""
    if text is None:
        return None
    try:
        ends = [float(word) for word in text.split(":")]
    except ValueError:
        ends = []
    if len(ends) not in (1, 2):
        raise OptionError(f"defocus is '{text}'; give Å, or LOW:HIGH, such as 8000:20000")
    return ends[0], ends[-1]
