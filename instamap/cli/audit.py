"""`instamap audit`: whether to believe a motion."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from instamap.cli.arguments import BendingRun, Device, OutFolder
from instamap.cli.terminal import show
from instamap.cli.text_table import columns

if TYPE_CHECKING:
    from instamap.motion.audit import Audit, ConformationAudit
    from instamap.motion.motion_model import MotionModel
    from instamap.motion.verdict_map import LocalVerdict
    from instamap.progress import Progress
    from instamap.workflows.output import FolderKind

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
    device: Device = "cpu",
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

    verdict.mrc says where to believe what: 3 the map and its motion, 2 the map, which is at rest, 1
    the map, but not how it moves, 0 nothing, since half maps agree no better than noise;
    local_resolution.mrc (Å) and reference.mrc are of the state from which motion is seen.
    `instamap view` has ChimeraX colour the one by the other.
    """
    from instamap.cli.motion_inputs import device_for, read_conformation
    from instamap.cli.progress_bars import ProgressBars
    from instamap.motion import audit as audits
    from instamap.motion import verdict_map
    from instamap.motion.motion_model import MotionModel
    from instamap.report import audit_plot
    from instamap.version import __version__
    from instamap.workflows import output
    from instamap.workflows.record import write_json

    kind = folder_kind()
    output.check(out, kind, force)
    where = device_for(device)
    model = MotionModel.open(motion).to(where)
    model.check_bends(motion)
    start = read_conformation(model, state)
    z = audits.conformations(model.latents.double())
    with output.reserve(out, kind, force) as place, place.filled() as folder:
        with ProgressBars() as bars:
            outcome = audits.audit(model, start, z, bars)
            judged, words = _combined(model, outcome, bars)
        if judged is not None:
            outcome = verdict_map.with_verdict(outcome, judged)
        outcome.write_maps(folder)
        audit_plot.plot(folder / PICTURE, outcome)
        shares = None if judged is None else judged.record()
        record = {**outcome.record(), "voxels": shares}
        files = output.names_in(folder)
        write_json(folder / RECORD, {"instamap": __version__, "files": files, **record})
    show(columns(_rows(outcome)))
    for line in [*_conclusion(outcome), *words]:
        show(line)
    show(f"everything in {out}/: look at {PICTURE}")


def folder_kind() -> "FolderKind":
    """The folders that the command writes."""
    from instamap.motion.audit import MAPS
    from instamap.motion.verdict_map import NAMES
    from instamap.workflows.output import FolderKind

    maps = [f"{name}.mrc" for name in (*MAPS, *NAMES)]
    return FolderKind("an audit", RECORD, (*maps, PICTURE, RECORD))


def _combined(
    model: "MotionModel", outcome: "Audit", progress: "Progress"
) -> "tuple[LocalVerdict | None, list[str]]":
    """What to believe at each voxel, and that in words; or None and why it cannot be said."""
    from instamap.errors import InstamapError
    from instamap.motion import verdict_map

    try:
        judged = verdict_map.combine(model, outcome, progress)
    except InstamapError as error:
        return None, [f"no verdict.mrc: {error}"]
    lines = ["voxels of the mask, by verdict.mrc:"]
    for belief in reversed(verdict_map.Belief):
        share = judged.shares[belief]
        lines.append(f"  {belief:d}  {share:6.1%}  {verdict_map.WORDS[belief]}")
    return judged, lines


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
