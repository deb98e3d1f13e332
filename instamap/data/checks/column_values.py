"""Values that no microscope and no refinement has: other units, placeholders, places outside."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from instamap.data.checks.finding import Finding, named, rows_where
from instamap.data.particle_table import ParticleTable
from instamap.scene import Optics

ANGLES = ("rlnAngleRot", "rlnAngleTilt", "rlnAnglePsi")
PLACEHOLDERS = (-999.0, 999.0, -9999.0, 9999.0)  # written where there is no value
MAX_ANGLE = 3600.0  # degrees; whole turns add up in some programs
NM = 10.0  # Å
MIN_DEFOCUS = 50.0  # Å; less for all images is another unit
LOWEST_DEFOCUS = 0.05  # of all images, in any unit; less is in focus
LOW_DEFOCUS = 2500.0  # Å; less for all images is rare
HIGH_DEFOCUS = 2e5  # Å; more is rare
MAX_DEFOCUS = 2e6  # Å
HIGH_AMPLITUDE_CONTRAST = 0.5
MAX_AMPLIFICATION = 1e3  # by a negative B-factor, at the Nyquist frequency
SHARE_OF_MOST = 0.5  # of the rows, that make a doubt


@dataclass(frozen=True)
class Quantity:
    """A quantity with the range that exists.

    columns: of RELION, by which it is named if the file has them. unit: after a number.
    hint: what other unit it may be in.
    """

    words: str
    columns: tuple[str, ...]
    unit: str
    low: float
    high: float
    hint: str
    values: Callable[[Optics], Tensor]


OPTICS = (
    Quantity(
        "voltage",
        ("rlnVoltage",),
        "kV",
        10.0,
        3000.0,
        "300 kV is 300, not 300000 or 0.3",
        lambda optics: optics.voltage,
    ),
    Quantity(
        "spherical aberration",
        ("rlnSphericalAberration",),
        "mm",
        -10.0,
        20.0,
        "2.7 mm is 2.7, not 2700",
        lambda optics: optics.spherical_aberration,
    ),
    Quantity(
        "amplitude contrast",
        ("rlnAmplitudeContrast",),
        "",
        0.0,
        1.0,
        "7 % is 0.07",
        lambda optics: optics.amplitude_contrast,
    ),
    Quantity(
        "defocus",
        ("rlnDefocusU",),
        "Å",
        -MAX_DEFOCUS,
        MAX_DEFOCUS,
        "1 µm is 10000 Å",
        lambda optics: optics.defocus_u,
    ),
    Quantity(
        "defocus",
        ("rlnDefocusV",),
        "Å",
        -MAX_DEFOCUS,
        MAX_DEFOCUS,
        "1 µm is 10000 Å",
        lambda optics: optics.defocus_v,
    ),
    Quantity(
        "B-factor",
        ("rlnCtfBfactor",),
        "Å²",
        -1e5,
        1e5,
        "it multiplies by exp(-B s²/4)",
        lambda optics: optics.b_factor,
    ),
    Quantity(
        "factor of the CTF",
        ("rlnCtfScalefactor",),
        "",
        -1e3,
        1e3,
        "1 leaves the CTF as it is",
        lambda optics: optics.scale,
    ),
    Quantity(
        "phase shift",
        ("rlnPhaseShift",),
        "radians",
        -6.3,
        6.3,
        "a phase plate shifts by 90 degrees",
        lambda optics: optics.phase_shift,
    ),
)


def check(table: ParticleTable) -> list[Finding]:
    """What is wrong or doubtful with the numbers that a file gives."""
    return [
        *_angles(table),
        *_origins(table),
        *_pixel_size(table),
        *_optics(table),
        *_defocus(table),
        *_doubtful_optics(table),
    ]


def _angles(table: ParticleTable) -> list[Finding]:
    """Placeholders, and angles that are no angles."""
    findings = []
    for name in ANGLES:
        if name not in table.columns:
            continue
        values = torch.from_numpy(table.columns.as_numbers(name).copy())
        placeholder = torch.isin(values, torch.tensor(PLACEHOLDERS, dtype=values.dtype))
        wrong = placeholder | (values.abs() > MAX_ANGLE)
        rows = rows_where(wrong)
        if rows:
            first = float(values[rows[0]])
            what = "a placeholder, not an orientation" if placeholder[rows[0]] else "no angle"
            value = (
                f"{name} of '{table.path}' is {first:g} in {named(rows)}, which is {what}"
                f" ({len(rows)} of {len(table)} rows)"
            )
            remedy = "take the STAR file of a 3-D refinement, or remove these rows"
            findings.append(Finding("placeholders", value, remedy, is_wrong=True))
    return findings


def _origins(table: ParticleTable) -> list[Finding]:
    """Particles outside their images."""
    if table.box is None:
        return []
    edge = (table.box * table.pixel_size).double()
    findings = []
    for axis, letter in enumerate("XY"):
        shift = table.origin[:, axis].abs()
        outside = shift > edge
        rows = rows_where(outside if outside.any() else shift > edge / 2)
        if not rows:
            continue
        names = (f"rlnOrigin{letter}Angst", f"rlnOrigin{letter}")
        name = next((name for name in names if name in table.columns), f"origin {letter.lower()}")
        value = (
            f"{name} of '{table.path}' is {float(table.origin[rows[0], axis]):g} Å in"
            f" {named(rows)}, which puts the particle outside its image of"
            f" {float(edge[rows[0]]):g} Å"
        )
        remedy = "mend or remove these rows"
        findings.append(Finding("origins", value, remedy, is_wrong=bool(outside.any())))
    return findings


def _pixel_size(table: ParticleTable) -> list[Finding]:
    name = table.terms["pixel size"]
    size = float(table.pixel_size[0])
    value = f"{name} of '{table.path}' is {size:g} Å"
    if not 0.01 <= size <= 1000:
        remedy = "no microscope has that; give the pixel size in Å"
        return [Finding("units", value, remedy, is_wrong=True)]
    if not 0.2 <= size <= 100:
        return [Finding("units", value, "few microscopes have that; is it in Å?")]
    return []


def _optics(table: ParticleTable) -> list[Finding]:
    """Values outside what exists."""
    if table.optics is None:
        return []
    findings = []
    for quantity in OPTICS:
        values = quantity.values(table.optics)
        wrong = ~((values >= quantity.low) & (values <= quantity.high))
        rows = rows_where(wrong)
        if not rows:
            continue
        unit = f" {quantity.unit}" if quantity.unit else ""
        first = float(values[rows[0]])
        value = (
            f"{_name(quantity, table)} of '{table.path}' is {first:g}{unit} in {named(rows)}, which"
            " no microscope has"
        )
        remedy = f"write it in the unit that belongs there ({quantity.hint})"
        findings.append(Finding("units", value, remedy, is_wrong=True))
    return findings


def _name(quantity: Quantity, table: ParticleTable) -> str:
    present = [name for name in quantity.columns if name in table.columns]
    return " and ".join(present) or quantity.words


def _defocus(table: ParticleTable) -> list[Finding]:
    """A defocus in µm or nm, or of the other sign."""
    if table.optics is None:
        return []
    mean = 0.5 * (table.optics.defocus_u + table.optics.defocus_v)
    size = mean.abs()
    highest = float(size.max())
    if highest == 0 or highest > MAX_DEFOCUS:
        return []
    span = f"rlnDefocusU and rlnDefocusV of '{table.path}' are {_span(mean)} Å"
    is_in_focus = float(mean.min()) < LOWEST_DEFOCUS and highest < LOW_DEFOCUS
    if is_in_focus:
        return []
    if highest < MIN_DEFOCUS:
        remedy = "no micrograph has that; write them in Å (1 µm is 10000 Å)"
        return [Finding("units", span, remedy, is_wrong=True)]
    if highest < LOW_DEFOCUS:
        remedy = "few micrographs have that; are they in nm? Å are ten times as many"
        return [Finding("units", span, remedy)]
    if float(size.median()) > HIGH_DEFOCUS:
        return [Finding("units", span, "few micrographs have that; are they in Å?")]
    if float((mean < 0).double().mean()) > SHARE_OF_MOST:
        remedy = "underfocus is positive here; change the sign unless these are overfocused"
        return [Finding("ctf-sign", f"{span}, mostly below 0", remedy)]
    return []


def _doubtful_optics(table: ParticleTable) -> list[Finding]:
    """Values that exist but rarely."""
    if table.optics is None:
        return []
    findings = []
    contrast = float(table.optics.amplitude_contrast.median())
    if HIGH_AMPLITUDE_CONTRAST < contrast <= 1:
        value = f"rlnAmplitudeContrast of '{table.path}' is {contrast:g}"
        findings.append(Finding("units", value, "0.07 to 0.1 is usual in ice; mend it if wrong"))
    smallest = float(table.optics.b_factor.min())
    nyquist = 0.5 / float(table.pixel_size[0])
    amplification = -0.25 * smallest * nyquist**2
    if amplification > torch.tensor(MAX_AMPLIFICATION).log():
        value = f"rlnCtfBfactor of '{table.path}' is as low as {smallest:g} Å²"
        remedy = "it multiplies by exp(-B s²/4), so doses and decay are positive; change the sign"
        findings.append(Finding("units", value, remedy))
    if float(table.optics.scale.median()) <= 0:
        value = f"rlnCtfScalefactor of '{table.path}' is {float(table.optics.scale.median()):g}"
        findings.append(Finding("units", value, "1 leaves the CTF as it is; mend it"))
    return findings


def _span(values: Tensor) -> str:
    low, high = float(values.min()), float(values.max())
    return f"{low:.4g}" if low == high else f"{low:.4g} to {high:.4g}"
