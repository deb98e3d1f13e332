"""`instamap populations`: what share of the particles is in each conformation."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from instamap.cli.arguments import Device, MotionRun, OutFolder, ParticlesOfRun
from instamap.cli.terminal import show
from instamap.cli.text_table import columns

if TYPE_CHECKING:
    from instamap.motion.populations import Populations
    from instamap.motion.regions import Region

RECORD = "populations.json"
PICTURE = "populations.png"
REPLICATES = 200  # where nothing else is said
MIN_REPLICATES = 20


def populations(
    motion: MotionRun,
    out: OutFolder = Path("populations"),
    region: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=LOW:HIGH",
            help="A region whose share is wanted, such as closed=-1:0; either bound may be left "
            "out, and those of further coordinates follow after commas. Once for each region.",
        ),
    ] = None,
    split: Annotated[
        list[float] | None,
        typer.Option(
            metavar="Z",
            help="Regions: what is below and from a place of a single coordinate on. Once for each "
            "place.  [default: the barriers of the energy]",
        ),
    ] = None,
    bootstrap: Annotated[
        int,
        typer.Option(
            min=MIN_REPLICATES,
            metavar="N",
            help="Draws of the particles, with replacement, that intervals are made of.",
        ),
    ] = REPLICATES,
    particles: ParticlesOfRun = None,
    datadir: Annotated[
        Path | None,
        typer.Option(help="Folder that image paths are relative to.  [default: the run's]"),
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of the draws.")] = 0,
    device: Device = "cpu",
    force: Annotated[
        bool, typer.Option("--force", help="Replace populations that the folder holds.")
    ] = False,
) -> None:
    """What share of the particles is in each conformation and region of a motion, with 95 %
    intervals, and the energy profile of a single coordinate.

    Shares are those under which the images are likeliest, not counts of assigned particles, which
    noise smears out. Each half's conformations are held against particles that it was not fitted
    to. Intervals come from draws of the particles and from the difference of the halves.

    populations.json; populations.csv: the shares of conformations; profile.csv: energy (kT) and
    share below along the motion; populations.png. Where the folder holds states.csv of `instamap
    states`, it gets columns with the share of the particles that are nearest to each state, and
    its -log.
    """
    from instamap.cli.motion_inputs import device_for, particles_of_run
    from instamap.cli.progress_bars import ProgressBars
    from instamap.motion import population_tables, regions
    from instamap.motion.motion_model import MotionModel
    from instamap.report import populations_plot
    from instamap.version import __version__
    from instamap.workflows import embed_new, output, particle_likelihoods
    from instamap.workflows.record import write_json

    files = (population_tables.TABLE, population_tables.PROFILE, PICTURE, RECORD)
    kind = output.FolderKind("populations", RECORD, files)
    output.check(out, kind, force)
    where = device_for(device)
    model = MotionModel.open(motion)
    wanted = regions.parse(region or [], model.latents.shape[1])
    wanted += _pieces(model.latents.shape[1], split)
    table = particles_of_run(model, particles)
    chosen = datadir or model.settings.get("datadir")
    opened = embed_new.open_particles(model, table.path, chosen)
    inputs = (table.path, *opened.stacks.files)
    with output.reserve(out, kind, force, inputs) as place, place.filled() as folder:
        with ProgressBars() as bars:
            found = particle_likelihoods.estimate_populations(
                model,
                opened,
                wanted,
                replicates=bootstrap,
                seed=seed,
                progress=bars,
                device=where,
            )
        population_tables.write(folder, found)
        populations_plot.plot(folder / PICTURE, found)
        written = output.names_in(folder)
        record = {"instamap": __version__, "files": written, "motion": str(motion.absolute())}
        write_json(folder / RECORD, {**record, **found.record()})
    states = out / population_tables.STATES
    if states.exists():
        population_tables.add_to_states(states, found)
    for line in _summary(found):
        show(line)
    show(f"everything in {out}/: look at {PICTURE}")


def _pieces(latent: int, splits: list[float] | None) -> "list[Region]":
    """The regions into which a single coordinate is split. Raises OptionError."""
    from instamap.errors import OptionError
    from instamap.motion import regions

    if not splits:
        return []
    if latent > 1:
        raise OptionError(
            f"split is for a single coordinate, but particles have {latent}; give --region, with"
            " bounds of each"
        )
    return regions.pieces(splits)


def _summary(found: "Populations") -> list[str]:
    """The shares of regions in columns, or how many conformations have some."""
    gap = max(weights.gap for weights in found.weights)
    line = f"shares of {found.particles} particles; no others make the mean one likelier by"
    lines = [f"{line} {max(gap, 1e-9):.0e} nats"]
    if not found.regions:
        return [*lines, "shares of conformations in populations.csv; those of regions: --region"]
    names = [fit.name for fit in found.fits]
    rows = [["region", "z1", "share", "95 % interval", *names]]
    for region, share in found.regions:
        of_fits = [f"{one:.1%}" for one in share.of_fits]
        interval = f"{share.low:.1%} to {share.high:.1%}"
        rows.append([region.name, region.first_bounds, f"{share.value:.1%}", interval, *of_fits])
    return [*lines, columns(rows)]
