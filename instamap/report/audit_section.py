"""What a report says of whether to believe a motion: an audit of some of its voxels."""

import html

from instamap.errors import DataError
from instamap.motion import audit as audits
from instamap.motion.audit import Audit
from instamap.motion.motion_model import MotionModel
from instamap.report import audit_plot, pixels
from instamap.report.section import Section, paragraphs, table
from instamap.report.slices import VIEWS

TITLE = "Whether to believe the motion"
MAX_EDGE = 40  # voxels along the box that are looked at
OF_CONFORMATIONS = 2  # one in so many of the audit's conformations along a single coordinate
HEAD = (
    "conformation",
    "moved (Å rms)",
    "at most (Å)",
    "halves differ (Å rms)",
    "strain",
    "folded",
)
PICTURES = {
    "displacement": "how far it moves, up to {high:.3g} Å",
    "disagreement": "how far the halves differ, in the same colours",
    "believed": "bright: the motion is to be believed",
}


def section(motion: MotionModel) -> Section:
    """The audit of a motion that bends, in a table and pictures."""
    every = spacing(motion)
    try:
        audit = sparse_audit(motion)
    except DataError as error:
        return Section(TITLE, paragraphs([str(error)]))
    verdict = audit.verdict_where("the third picture is bright")
    words = [f"Verdict: {verdict}.", *_numbers(audit)]
    more = "instamap audit writes maps of this, by which ChimeraX colours."
    if every == 1:
        words.append(f"Looked at: every voxel inside the masks. {more}")
    else:
        words.append(
            f"Looked at: one in {every} voxels along each axis inside the masks; instamap audit"
            f" looks at all. {more}"
        )
    rows = [_row(one) for one in audit.conformations]
    shown = table(HEAD, rows, "Displacement from the median, weighted by density")
    return Section(TITLE, paragraphs(words) + _pictures(audit, every) + shown)


def spacing(motion: MotionModel) -> int:
    """One in how many voxels along each axis `sparse_audit` looks at."""
    return max(1, -(-motion.scene.box // MAX_EDGE))


def sparse_audit(motion: MotionModel) -> Audit:
    """An audit of some voxels of a motion that bends, which takes seconds. Raises DataError where
    the fits have no density in common.
    """
    places = audits.conformations(motion.latents.double())
    if motion.latents.shape[1] == 1:
        places = places[::OF_CONFORMATIONS]
    return audits.audit(motion, audits.reference(motion), places, every=spacing(motion))


def _numbers(audit: Audit) -> list[str]:
    """What both fits say together, in a line; none where there is one fit."""
    if audit.signal is None or audit.believed is None or audit.disagreement_rms is None:
        return []
    return [
        f"The motion is {audit.motion_rms:.2f} Å rms where there is density. The halves' fields"
        f" correlate by {audit.signal:.3f} and differ by {audit.disagreement_rms:.2f} Å rms;"
        f" {audit.believed:.0%} of the motion is where they differ by less than half of it."
    ]


def _row(one: audits.ConformationAudit) -> list[str]:
    differ = "-" if one.disagreement_rms is None else f"{one.disagreement_rms:.2f}"
    return [
        ", ".join(f"{value:+.3f}" for value in one.z),
        f"{one.displacement_weighted:.2f}",
        f"{one.displacement_max:.2f}",
        differ,
        f"{one.strain_rms:.3f}",
        f"{one.folded:.2%}",
    ]


def _pictures(audit: Audit, every: int) -> str:
    """Slices along y through the middle of what moves."""
    maps = {name: audits.lattice(audit.maps[name], every) for name in PICTURES}
    view = VIEWS[1]
    place = audit_plot.middle(maps["displacement"])[view.axis]
    high = max(float(maps["displacement"].max()), audits.MIN_MOTION)
    drawn = []
    for name, words in PICTURES.items():
        top = 1.0 if name == "believed" else high
        cut = maps[name].select(view.axis, place)
        picture = pixels.data_uri(cut, 0.0, top, pixels.VIRIDIS)
        caption = html.escape(words.format(high=high))
        image = f'<img src="{picture}" alt="Slice of the audit: {caption}" class="slice">'
        drawn.append(f"<figure>{image}<figcaption>{caption}</figcaption></figure>")
    row = f'<div class="row">{"".join(drawn)}</div>'
    return row + paragraphs([f"Slices {view.title}: {view.across} to the right, {view.up} up."])
