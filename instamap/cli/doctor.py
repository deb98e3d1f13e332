"""`instamap doctor`: what is wrong with particles, before a run."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from instamap.cli.arguments import Particles
from instamap.cli.flags import with_settings
from instamap.cli.terminal import show
from instamap.workflows.read_settings import Typed

if TYPE_CHECKING:
    from instamap.workflows.doctor import Diagnosis
    from instamap.workflows.requirements import Requirements

FINDINGS = 1  # exit status


@with_settings("doctor")
def doctor(
    particles: Particles,
    plot: Annotated[
        Path | None,
        typer.Option(metavar="VIEWS.png", help="Draw the directions of view."),
    ] = None,
    *,
    typed: Typed,
) -> None:
    """Find what is wrong with particles, each with its remedy, in about a minute.

    Values that no microscope has, poses that are none, backgrounds, outliers, copies; and, by a
    quick map judged on held-out images: contrast, sign, axes and centre of the shifts, inverse or
    mirrored poses, pixel size, and the CTF. Works on a file whose images are absent, too.

    Exit status 0: nothing was found; 1: something was; 2: the file cannot be read.
    """
    from instamap.cli.progress_bars import ProgressBars
    from instamap.workflows.doctor import examine
    from instamap.workflows.settings import Settings

    plain = {name: value for name, value in typed.plain.items() if value is not None}
    settings = Settings(particles=particles, **plain)
    with ProgressBars() as progress:
        diagnosis = examine(settings, progress)
    _show(diagnosis)
    if plot is not None:
        from instamap.report import pose_coverage

        pose_coverage.plot(plot, diagnosis.rotation, diagnosis.covered)
    if not diagnosis.is_sound:
        raise typer.Exit(FINDINGS)


def _show(diagnosis: "Diagnosis") -> None:
    show(f"{diagnosis.particles}: {diagnosis.count} images")
    show(f"views: slices cover {diagnosis.covered:.0%} of the directions in Fourier space")
    if diagnosis.needs is not None:
        show(_needs(diagnosis.needs))
    for reason in diagnosis.unchecked:
        show(f"not checked: {reason}")
    for finding in diagnosis.findings:
        show(f"{finding.code}: {finding}")
    if diagnosis.is_sound:
        show("nothing was found to be wrong")


def _needs(needs: "Requirements") -> str:
    memory = needs.memory / 1e9
    free = "" if needs.available is None else f" of {needs.available / 1e9:.1f} GB that are free"
    return f"a run needs about {memory:.1f} GB{free} and {_time(needs.seconds)}"


def _time(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = seconds / 60
    return f"{minutes:.0f} min" if minutes < 90 else f"{minutes / 60:.1f} h"
