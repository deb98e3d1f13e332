"""The pixel size against the microscope's, and against what the stacks' headers say."""

from collections.abc import Sequence
from pathlib import Path

from instamap.data.checks.finding import Finding
from instamap.data.particle_table import ParticleTable

DIFFERENCE = 0.01  # relative, from which pixel sizes contradict one another
ROUNDING = 0.002  # relative, of a calibration that is written twice
CALIBRATION = 0.15  # relative, of two calibrations; more is binning
UNSET = (0.0, 1.0)  # in headers of programs that do not know it


def check(table: ParticleTable, headers: Sequence[tuple[Path, float]]) -> list[Finding]:
    """Findings of the pixel size in Å. headers: each stack and the size along x that it gives."""
    return [*_against_headers(table, headers), *_against_microscope(table)]


def _against_headers(table: ParticleTable, headers: Sequence[tuple[Path, float]]) -> list[Finding]:
    sizes = table.pixel_size.unique().tolist()
    others = []
    for path, found in headers:
        is_set = found not in UNSET and found > 0
        if is_set and all(abs(found / size - 1) > DIFFERENCE for size in sizes):
            others.append((path, found))
    if not others:
        return []
    path, found = others[0]
    name = table.terms["pixel size"]
    more = f" ({len(others)} of {len(headers)} stacks)" if len(headers) > 1 else ""
    listed = " or ".join(f"{size:g}" for size in sizes)
    value = f"{name} of '{table.path}' is {listed} Å, but the header of '{path}' says {found:g} Å"
    return [Finding("pixel-size", value + more, "mend the one that is wrong")]


def _against_microscope(table: ParticleTable) -> list[Finding]:
    """Detector and magnification: images may be binned, but not by a few per cent."""
    detector, magnification = "rlnDetectorPixelSize", "rlnMagnification"
    names = ("rlnImagePixelSize", "rlnPixelSize")
    given = [name for name in names if name in table.columns]
    if not given or detector not in table.columns or magnification not in table.columns:
        return []
    pixel = table.columns.as_numbers(detector)[0]
    factor = table.columns.as_numbers(magnification)[0]
    if not (pixel > 0 and factor > 0):
        return []
    size = float(table.pixel_size[0])
    expected = float(pixel * 1e4 / factor)
    ratio = size / expected
    if not ROUNDING < abs(ratio - 1) < CALIBRATION:
        return []
    value = (
        f"{given[0]} of '{table.path}' is {size:g} Å, but {detector} and {magnification} make"
        f" {expected:.4g} Å"
    )
    return [Finding("pixel-size", value, "mend the one that is wrong")]
