"""The built-in formats obey the laws of input formats."""

from pathlib import Path

import torch

from instamap.geometry import rotations
from instamap.testing import FormatLaws
from instamap.testing.formats import Sample


class TestStar(FormatLaws):
    """STAR files of RELION 3.1 and later."""

    name = "relion-star"

    def write(self, particles: Sample, folder: Path, optics_columns: str = "") -> Path:
        label, _, value = optics_columns.partition(" ")
        optics_labels = "rlnOpticsGroup rlnVoltage rlnSphericalAberration rlnAmplitudeContrast"
        optics_values = f"1 300 2.7 0.1 {particles.pixel_size} {value}".strip()
        lines = _head("optics", f"{optics_labels} rlnImagePixelSize {label}".split())
        lines += [optics_values]
        rows = _rows(particles)
        lines += _head("particles", list(rows))
        lines += [" ".join(map(str, values)) for values in zip(*rows.values(), strict=True)]
        path = folder / "particles.star"
        path.write_text("\n".join(lines) + "\n")
        return path

    def write_unmodelled(self, particles: Sample, folder: Path) -> tuple[Path, str]:
        return self.write(particles, folder, "rlnBeamTiltX 0.3"), "rlnBeamTiltX"


def _head(name: str, labels: list[str]) -> list[str]:
    return ["", f"data_{name}", "", "loop_", *(f"_{label}" for label in labels)]


def _rows(particles: Sample) -> dict[str, list]:
    angles = torch.rad2deg(rotations.to_euler(particles.rotation))
    optics = particles.optics
    return {
        "rlnImageName": particles.image_names,
        "rlnOpticsGroup": [1] * len(particles.image_names),
        "rlnAngleRot": angles[:, 0].tolist(),
        "rlnAngleTilt": angles[:, 1].tolist(),
        "rlnAnglePsi": angles[:, 2].tolist(),
        "rlnOriginXAngst": particles.origin[:, 0].tolist(),
        "rlnOriginYAngst": particles.origin[:, 1].tolist(),
        "rlnDefocusU": optics.defocus_u.tolist(),
        "rlnDefocusV": optics.defocus_v.tolist(),
        "rlnDefocusAngle": torch.rad2deg(optics.defocus_angle).tolist(),
        "rlnPhaseShift": torch.rad2deg(optics.phase_shift).tolist(),
        "rlnRandomSubset": (particles.half + 1).tolist(),
    }
