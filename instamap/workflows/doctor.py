"""What is wrong with a set of particles, found in about a minute: checks of the file, of the
images, and of the conventions by a quick map under each alternative.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor

from instamap.data import formats, noise
from instamap.data.checks.finding import Finding
from instamap.data.particle_table import ParticleTable
from instamap.data.particles import Particles
from instamap.data.stacks import Stacks
from instamap.errors import DataError
from instamap.fourier.ctf import ctf
from instamap.geometry import grids
from instamap.progress import SILENT, Progress
from instamap.scene import Views
from instamap.statistics import alternatives
from instamap.statistics.alternatives import Judgement, Reading
from instamap.statistics.contrast import measure
from instamap.statistics.particle_statistics import fewer_pixels
from instamap.workflows import preflight, requirements
from instamap.workflows.requirements import Requirements
from instamap.workflows.settings import Settings

QUICK_IMAGES = 2000
QUICK_BOX = 48  # voxels of a quick map
MIN_QUICK_IMAGES = 50
PREMULTIPLIED_SHARE = 0.8  # of the images' power that goes with C²; noise has none of it else
PLAIN_SHARE = 0.4
MAX_SIGNAL_SHARE = 0.5  # of the images' variance: beyond, their power says nothing of the noise
MIN_CTF_SPREAD = 0.05  # standard deviation of C² in a shell by which power can be compared
MIN_COVERED = 0.9  # of all directions in Fourier space
MIN_VIEWS = 50
SLICE_TOLERANCE = 0.05  # radians from a slice, within which a direction is covered
DIRECTIONS = 500
VIEWS_AT_ONCE = 4096
ONE_POSE = "one-pose"  # the finding without which a quick map says nothing
OF_VIEWS = ("placeholders", ONE_POSE, "one-direction")  # findings that say all of the views


@dataclass(frozen=True)
class Diagnosis:
    """What was found.

    particles: the file. count: of its images. findings: each with its remedy. unchecked: what could
    not be looked at, and why. rotation "n 3 3": of all images. covered: share of the directions in
    Fourier space that a slice goes through. needs: of a run; None without images.
    """

    particles: Path
    count: int
    findings: tuple[Finding, ...]
    unchecked: tuple[str, ...]
    rotation: Tensor
    covered: float
    needs: Requirements | None = None

    @property
    def is_sound(self) -> bool:
        """Whether nothing was found."""
        return not self.findings


@dataclass
class _Report:
    """Findings and gaps, gathered one after the other."""

    findings: list[Finding] = field(default_factory=list)
    unchecked: list[str] = field(default_factory=list)

    def add(self, findings: list[Finding]) -> None:
        known = {finding.code for finding in self.findings}
        self.findings += [finding for finding in findings if finding.code not in known]


def examine(settings: Settings, progress: Progress = SILENT) -> Diagnosis:
    """Looks for what is wrong with `settings.particles`. Raises DataError for an unreadable file.

    Where images are absent or unreadable, what the file says is looked at alone.
    """
    table = formats.read(settings.particles, datadir=settings.datadir)
    report = _Report()
    particles = _with_images(table, settings, report)
    headers = [] if particles is None else particles.stacks.header_pixel_sizes
    report.add(preflight.of_table(table, headers, settings))
    covered = coverage(table.rotation, settings.point_group)
    has_views = not any(finding.code in OF_VIEWS for finding in report.findings)
    if has_views and len(table) >= MIN_VIEWS and covered < MIN_COVERED:
        value = (
            f"views of '{table.path}' cover {covered:.0%} of the directions in Fourier space, so a"
            " map is smeared along the others"
        )
        report.add([Finding("coverage", value, "add images of other views, or tilted ones")])
    needs = None
    if particles is not None:
        needs = _examine_images(particles, settings, report, progress)
    return Diagnosis(
        table.path,
        len(table),
        tuple(report.findings),
        tuple(report.unchecked),
        table.rotation,
        covered,
        needs,
    )


def _with_images(table: ParticleTable, settings: Settings, report: _Report) -> Particles | None:
    """The particles with their stacks; None where these are absent."""
    try:
        stacks = Stacks(table.image_names, table.path, settings.datadir)
        return Particles(table, stacks, settings.preprocess)
    except DataError as error:
        report.unchecked.append(f"images: {error}")
        return None


def _examine_images(
    particles: Particles, settings: Settings, report: _Report, progress: Progress
) -> Requirements | None:
    """What the images say."""
    preflight.outliers(particles, replace(settings, exclude_outliers=False), progress)
    step = -(-particles.count // QUICK_IMAGES)
    rows = torch.arange(0, particles.count, step)
    try:
        report.add(_halves_of_copies(particles))
        noise.estimate(particles, rows, limit=len(rows))
        report.add(preflight.of_images(particles))
        cube = requirements.typical_cube(particles.box)
        needs = requirements.measure(particles, rows, settings, cube)
    except DataError as error:
        report.add([Finding("images", str(error), "mend that first", is_wrong=True)])
        return None
    blocking = {finding.code for finding in report.findings if finding.is_wrong}
    unusable = blocking - {"half-sets", "copies"}
    unusable |= {finding.code for finding in report.findings if finding.code == ONE_POSE}
    if unusable or len(rows) < MIN_QUICK_IMAGES:
        reason = "other findings come first" if unusable else f"{len(rows)} images are too few"
        report.unchecked.append(f"conventions by a quick map: {reason}")
        return needs
    usual = rows[~torch.isin(rows, _wild(particles))]
    report.add(_conventions(particles, usual, settings, report, progress))
    return needs


def _halves_of_copies(particles: Particles) -> list[Finding]:
    """Copies of images; those in both halves cannot be right."""
    copies = preflight.of_copies(particles)
    if not copies or particles.half is None:
        return copies
    try:
        particles.split(0)
    except DataError as error:
        value, _, remedy = str(error).rpartition("; ")
        return [Finding("copies", value, remedy, is_wrong=True)]
    return copies


def _wild(particles: Particles) -> Tensor:
    assert particles.inspector is not None
    return particles.inspector.wild()


def _conventions(
    particles: Particles, rows: Tensor, settings: Settings, report: _Report, progress: Progress
) -> list[Finding]:
    """What a quick map says of contrast, shifts, poses, pixel size and CTF."""
    edge = particles.box * particles.pixel_size
    coarse = fewer_pixels(particles, edge / QUICK_BOX)
    reading = _reading(coarse, rows, settings)
    findings = _premultiplication(reading, particles)
    if findings:
        return findings
    known = {finding.code for finding in report.findings}
    among = alternatives.alternatives(reading)
    judged = alternatives.more_likely(reading, among, progress=progress)
    told = [one for one in judged if one.alternative.code not in known]
    findings = _findings(told, particles)
    best = alternatives.taken_on(reading, judged)
    every = torch.arange(len(rows))
    contrast = measure(best.statistics(every[::2]), best.statistics(every[1::2]))
    return findings + preflight.finding_of_contrast(particles, contrast)


def _reading(particles: Particles, rows: Tensor, settings: Settings) -> Reading:
    batch = particles.batch(rows)
    spectra = noise.estimate(particles, rows, limit=len(rows)).float()
    return Reading(
        batch.images - batch.images.mean((1, 2), keepdim=True),
        batch.views,
        spectra[batch.views.group],
        particles.pixel_size,
        particles.premultiplied,
        symmetry=settings.point_group,
    )


def _findings(judged: list[Judgement], particles: Particles) -> list[Finding]:
    """Alternatives that are likelier, in words.

    Images that are mirrored in x are those that are mirrored in y with origins of the other sign,
    but for the hand of the map: one thing to mend and not two.
    """
    findings = {one.alternative.code: _finding(one, particles) for one in judged}
    if "mirrored-images" in findings and "shift-sign" in findings:
        del findings["shift-sign"]
        value = findings["mirrored-images"].value
        remedy = "set rlnIsFlip to 1, or write the pixels of each line in the other order"
        findings["mirrored-images"] = Finding("mirrored-images", value, remedy)
    return list(findings.values())


def _finding(judgement: Judgement, particles: Particles) -> Finding:
    """An alternative that is likelier, in words."""
    alternative = judgement.alternative
    what, remedy = _WORDS[alternative.code](alternative.amount, particles)
    value = (
        f"{what}: {judgement.nats:.3g} nats likelier on held-out images ({judgement.images} of"
        f" '{particles.path}')"
    )
    return Finding(alternative.code, value, remedy)


def _premultiplication(reading: Reading, particles: Particles) -> list[Finding]:
    """Whether the images' power goes with C² where they hold noise, as the file says."""
    share = power_share(reading.images, reading.views, reading.pixel_size)
    name = particles.table.terms["premultiplied"]
    if share is None:
        return []
    if share > PREMULTIPLIED_SHARE and not reading.premultiplied:
        value = (
            f"{share:.0%} of the power of the images of '{particles.path}' goes with the square of"
            " the CTF, as if they were multiplied by it, and the file does not say so"
        )
        return [Finding("premultiplied", value, f"set {name} to 1 in the optics table")]
    if share < PLAIN_SHARE and reading.premultiplied:
        value = (
            f"{name} of '{particles.path}' is 1, but {share:.0%} of the images' power goes with the"
            " square of the CTF"
        )
        return [Finding("premultiplied", value, f"set {name} to 0, or multiply the images")]
    return []


def power_share(images: Tensor, views: Views, pixel_size: float) -> float | None:
    """The share of the images' power in outer shells that is proportional to C²; None where the CTF
    is the same in all of them, or where they are mostly signal.

    In each shell P = a + m C² by least squares over images; the share m ⟨C²⟩ / (a + m ⟨C²⟩) is that
    of the median shell of the outer half.
    """
    box = images.shape[-1]
    if views.optics is None or _signal_share(images) > MAX_SIGNAL_SHARE:
        return None
    square = ctf(views.optics, box, pixel_size).double() ** 2
    power = torch.fft.rfft2(images.double()).abs() ** 2
    shell = grids.noise_shells(box)[:, : box // 2 + 1]
    shares = []
    for number in range(box // 4, box // 2):
        inside = shell == number
        x = square[:, inside].flatten()
        y = power[:, inside].flatten()
        spread = x.std()
        if spread < MIN_CTF_SPREAD:
            continue
        slope = ((x - x.mean()) * y).mean() / spread**2
        shares.append(float(slope * x.mean() / y.mean()))
    return float(torch.tensor(shares).median()) if shares else None


def _signal_share(images: Tensor) -> float:
    """The share of the images' variance that their corners do not have."""
    box = images.shape[-1]
    outside = grids.pixel_centres(box, 1.0, dtype=torch.float64).norm(dim=-1) > box / 2
    noise_variance = images[:, outside].double().var(1).mean()
    return 1 - float(noise_variance / images.flatten(1).double().var(1).mean())


def coverage(rotation: Tensor, symmetry: Tensor | None = None) -> float:
    """The share of directions in Fourier space to which some image's slice comes near."""
    number = torch.arange(DIRECTIONS, dtype=torch.float64)
    height = 1 - (2 * number + 1) / DIRECTIONS
    angle = number * torch.pi * (3 - 5**0.5)
    radius = (1 - height**2).sqrt()
    targets = torch.stack([radius * angle.cos(), radius * angle.sin(), height], -1)
    if symmetry is not None:
        targets = torch.einsum("sij,kj->ski", symmetry.double(), targets)
    nearest = torch.full(targets.shape[:-1], torch.inf, dtype=torch.float64)
    for some in rotation[:, 2].double().split(VIEWS_AT_ONCE):
        nearest = torch.minimum(nearest, (targets @ some.mT).abs().amin(-1))
    if symmetry is not None:
        nearest = nearest.amin(0)
    return float((nearest < SLICE_TOLERANCE).double().mean())


Words = Callable[[float, Particles], tuple[str, str]]


def _origins(particles: Particles) -> str:
    names = ("rlnOriginXAngst", "rlnOriginX")
    name = next((name for name in names if name in particles.table.columns), "origins")
    return f"{name} and {name.replace('X', 'Y')}" if name != "origins" else name


def _shift_sign(_: float, particles: Particles) -> tuple[str, str]:
    return f"{_origins(particles)} have the other sign", "multiply both by -1"


def _shift_axes(_: float, particles: Particles) -> tuple[str, str]:
    return f"{_origins(particles)} are exchanged", "exchange x and y"


def _shift_ignored(_: float, particles: Particles) -> tuple[str, str]:
    remedy = "set both to 0, as for images that were centred when they were extracted"
    return f"{_origins(particles)} are of no use", remedy


def _transposed(_: float, particles: Particles) -> tuple[str, str]:
    remedy = "export the poses again: RELION's rot, tilt, psi turn the particle into the image"
    return "poses are those of the inverse rotation", remedy


def _mirrored(_: float, particles: Particles) -> tuple[str, str]:
    remedy = "write the lines of each image in the other order"
    return "images are mirrored as against their poses", remedy


def _centre(amount: float, particles: Particles) -> tuple[str, str]:
    coarse = max(1.0, particles.box / QUICK_BOX)
    value = f"the images' origin is about {amount * coarse:.1f} pixels away from pixel box // 2"
    return value, f"add that to {_origins(particles)}: see what the program takes for the centre"


def _pixel_size(factor: float, particles: Particles) -> tuple[str, str]:
    name = particles.table.terms["pixel size"]
    size = particles.pixel_size
    value = f"{name} is off by about {factor - 1:+.0%}: {size * factor:.4g} Å instead of {size:g} Å"
    return value, f"mend {name}; a defocus off by {factor**-2 - 1:+.0%} would look the same"


def _defocus(factor: float, particles: Particles) -> tuple[str, str]:
    value = f"rlnDefocusU and rlnDefocusV should be about {factor:g} times what they are"
    return value, "estimate the CTF again, at the pixel size of the micrographs"


def _ctf_sign(_: float, particles: Particles) -> tuple[str, str]:
    return "the CTF has the other sign convention", "multiply rlnDefocusU and rlnDefocusV by -1"


def _astigmatism(_: float, particles: Particles) -> tuple[str, str]:
    return "rlnDefocusU and rlnDefocusV are exchanged", "exchange them, or turn the angle by 90°"


def _phase_flipped(_: float, particles: Particles) -> tuple[str, str]:
    name = particles.table.terms["phase-flipped"]
    if particles.table.phase_flipped is None:
        return "images are phase-flipped already", f"set {name} to 1"
    return f"images are not phase-flipped, though {name} is 1", f"set {name} to 0"


def _no_ctf(_: float, particles: Particles) -> tuple[str, str]:
    remedy = "take the images as they were before their CTF was corrected"
    return "images have no contrast transfer any more", remedy


_WORDS: dict[str, Words] = {
    "shift-sign": _shift_sign,
    "shift-axes": _shift_axes,
    "shift-ignored": _shift_ignored,
    "transposed-poses": _transposed,
    "mirrored-images": _mirrored,
    "centre": _centre,
    "pixel-size": _pixel_size,
    "defocus": _defocus,
    "ctf-sign": _ctf_sign,
    "astigmatism": _astigmatism,
    "phase-flipped": _phase_flipped,
    "no-ctf": _no_ctf,
}
