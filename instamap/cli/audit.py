"""`instamap audit`: whether to believe a motion."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from instamap.cli.arguments import BendingRun, OutFolder
from instamap.cli.terminal import show
from instamap.cli.text_table import columns

if TYPE_CHECKING:
    from instamap.motion.audit import Audit, ConformationAudit

RECORD = "audit.json"
PICTURE = "audit.png"
HEADING = ("moved (rms, max Å)", "halves differ (rms Å)", "strain", "least det", "folded")


def audit(
    motion: BendingRun,
    out: OutFolder = Path("audit"),
    state: Annotated[
        str | None,
        typer.Option(
            metavar="Z[,Z...]", help="State from which motion is seen.  [default: the median]"
        ),
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Replace an audit that the folder holds.")
    ] = False,
) -> None:
    """How far material moves, whether space folds, and whether both independent fits say the same.

    States: 9 at equal distances from the 5th to the 95th percentile of a single coordinate; of
    several, two along each, 1.5 standard deviations either side of the median. Displacements are
    those of material between the reference and a state, through each fit by itself. Motion is
    believed in voxels where the fits disagree by less than half of it.

    audit.json; displacement.mrc (Å), disagreement.mrc (Å), strain.mrc: root mean squares over the
    states; believed.mrc: 1 where the motion is to be believed; jacobian.mrc: the least determinant
    of x + u, which folds space where it is not above 0; audit.png: slices.
    """
    from instamap.cli.motion_inputs import read_conformation
    from instamap.cli.progress_bars import ProgressBars
    from instamap.motion import audit as audits
    from instamap.motion.motion_model import MotionModel
    from instamap.report import audit_plot
    from instamap.version import __version__
    from instamap.workflows import output
    from instamap.workflows.record import write_json

    maps = [f"{name}.mrc" for name in audits.MAPS]
    kind = output.FolderKind("an audit", RECORD, (*maps, PICTURE, RECORD))
    output.check(out, kind, force)
    model = MotionModel.open(motion)
    model.check_bends(motion)
    start = read_conformation(model, state)
    z = audits.conformations(model.latents.double())
    with output.reserve(out, kind, force) as place, place.filled() as folder:
        with ProgressBars() as bars:
            outcome = audits.audit(model, start, z, bars)
        outcome.write_maps(folder)
        audit_plot.plot(folder / PICTURE, outcome)
        record = {"instamap": __version__, "files": output.names_in(folder), **outcome.record()}
        write_json(folder / RECORD, record)
    show(columns(_rows(outcome)))
    for line in _conclusion(outcome):
        show(line)
    show(f"everything in {out}/: look at {PICTURE}")


def _rows(outcome: "Audit") -> list[list[str]]:
    """The states in columns."""
    coordinates = [f"z{number}" for number in range(1, len(outcome.reference) + 1)]
    return [[*coordinates, *HEADING], *(_row(one) for one in outcome.conformations)]


def _row(one: "ConformationAudit") -> list[str]:
    z = [f"{value:+.3f}" for value in one.z]
    differ = "-" if one.disagreement_rms is None else f"{one.disagreement_rms:.2f}"
    return [
        *z,
        f"{one.displacement_weighted:.2f}, {one.displacement_max:.2f}",
        differ,
        f"{one.strain_rms:.3f}",
        f"{one.jacobian_min:.2f}",
        f"{one.folded:.2%}",
    ]


def _conclusion(outcome: "Audit") -> list[str]:
    """What follows from the states, in lines."""
    lines = []
    if outcome.signal is not None:
        lines.append(
            f"motion {outcome.motion_rms:.2f} Å rms where there is density; the halves' fields"
            f" correlate by {outcome.signal:.3f}, differ by {outcome.disagreement_rms:.2f} Å rms,"
            f" and share {outcome.believed:.0%} of the motion"
        )
    lost = max(one.lost for one in outcome.conformations)
    if lost:
        lines.append(
            f"up to {lost:.2%} of the mask could not be followed into a state and counts for no"
            " displacement"
        )
    return [*lines, f"verdict: {outcome.verdict}"]
