"""`instamap audit`: whether to believe a motion."""

from pathlib import Path
from typing import Annotated

import typer

from instamap.cli.output_checks import check_folder
from instamap.cli.text_table import columns

RECORD = "audit.json"


def audit(
    motion: Annotated[
        Path,
        typer.Argument(help="Folder of a run with --deform bending-field.", show_default=False),
    ],
    out: Annotated[Path, typer.Option("-o", "--out", help="Folder to write to.")] = Path("audit"),
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
    from instamap.cli.progress import Stages
    from instamap.motion import audit as audits
    from instamap.motion.motion_model import MotionModel
    from instamap.report.audit_plot import plot
    from instamap.workflows import output

    check_folder(out, (RECORD,), "an audit", force)
    given = MotionModel.open(motion)
    given.check_bends(motion)
    start = reference(given, state)
    z = audits.conformations(given.latents.double())
    with output.staged(out, force) as folder:
        with Stages() as stages:
            found = audits.audit(given, start, z, stages.counter("states", len(z)))
        found.write(folder)
        plot(folder / "audit.png", found)
    typer.echo("\n".join(_lines(found, out)))


def reference(motion, text: str | None):
    """The state "L" (float64) that is meant by numbers with commas between them, or the median.
    Raises OptionError.
    """
    import math

    import torch

    from instamap.errors import OptionError
    from instamap.motion.audit import reference as median

    if text is None:
        return median(motion).double()
    count = motion.latents.shape[1]
    try:
        values = [float(word) for word in text.split(",")]
    except ValueError:
        values = []
    if len(values) != count or not all(map(math.isfinite, values)):
        raise OptionError(
            f"state is '{text}'; give {count}"
            f" number{'s, with commas between them' if count > 1 else ''}"
        )
    return torch.tensor(values, dtype=torch.float64)


def _lines(found, out: Path) -> list[str]:
    """States in columns, and what follows from them."""
    names = [f"z{i + 1}" for i in range(len(found.reference))]
    rows = [
        [*names, "moved (rms, max Å)", "halves differ (rms Å)", "strain", "least det", "folded"]
    ]
    for s in found.conformations:
        differ = "-" if s.disagreement_rms is None else f"{s.disagreement_rms:.2f}"
        rows.append(
            [
                *[f"{v:+.3f}" for v in s.z],
                f"{s.displacement_weighted:.2f}, {s.displacement_max:.2f}",
                differ,
                f"{s.strain_rms:.3f}",
                f"{s.jacobian_min:.2f}",
                f"{s.folded:.2%}",
            ]
        )
    lines = [columns(rows)]
    if found.signal is not None:
        lines.append(
            f"motion {found.motion_rms:.2f} Å rms where there is density; the halves' fields"
            f" correlate by {found.signal:.3f}, differ by {found.disagreement_rms:.2f} Å rms, and"
            f" share {found.believed:.0%} of the motion"
        )
    worst = max(found.conformations, key=lambda s: s.lost)
    if worst.lost:
        lines.append(
            f"up to {worst.lost:.2%} of the mask could not be followed into a state and counts for"
            " no displacement"
        )
    return [*lines, f"verdict: {found.verdict}", f"everything in {out}/: look at audit.png"]
