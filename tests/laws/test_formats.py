"""The built-in formats obey the laws of input formats."""

import pickle
from pathlib import Path

import numpy as np
import torch

from instamap.geometry import rotations
from instamap.testing import FormatLaws
from instamap.testing.formats import Sample, sample


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
        return self.write(particles, folder, "rlnOddZernike None"), "rlnOddZernike"


class TestCryosparc(FormatLaws):
    """.cs files of cryoSPARC, in float64 so that the laws' tolerances hold."""

    name = "cryosparc"

    def write(self, particles: Sample, folder: Path, tilt: float = 0.0) -> Path:
        path = folder / "particles.cs"
        with path.open("wb") as file:
            np.save(file, cryosparc_rows(particles, tilt))
        return path

    def write_unmodelled(self, particles: Sample, folder: Path) -> tuple[Path, str]:
        return self.write(particles, folder, 0.3), "ctf/tilt_A"


class TestCryodrgn(FormatLaws):
    """Pickles of cryoDRGN, which say nothing of halves."""

    name = "cryodrgn"
    has_halves = False
    keeps_image_names = False

    def write(self, particles: Sample, folder: Path) -> Path:
        edge = particles.box * particles.pixel_size
        poses = (particles.rotation.numpy(), (particles.origin / edge).numpy())
        (folder / "poses.pkl").write_bytes(pickle.dumps(poses))
        (folder / "ctf.pkl").write_bytes(pickle.dumps(cryodrgn_ctf(particles)))
        (folder / "images.mrcs").touch()
        return folder / "poses.pkl"

    def test_some_rows_are_those_rows(self, tmp_path: Path) -> None:
        """The CTF is in a file of its own, of which the same rows are chosen."""
        rows = [4, 0, 5]
        (tmp_path / "some-ctf.pkl").write_bytes(pickle.dumps(cryodrgn_ctf(sample())[rows]))
        super().test_some_rows_are_those_rows(tmp_path)


class TestTiltSeries(FormatLaws):
    """Optimisation sets: each particle of the sample is seen in one tilt of its own."""

    name = "relion-tilt-series"
    keeps_image_names = False

    def write(self, particles: Sample, folder: Path, optics_columns: str = "") -> Path:
        label, _, value = optics_columns.partition(" ")
        labels = "rlnOpticsGroup rlnVoltage rlnSphericalAberration rlnAmplitudeContrast"
        lines = _head("optics", f"{labels} rlnImagePixelSize {label}".split())
        lines += [f"1 300 2.7 0.1 {particles.pixel_size} {value}".strip()]
        lines += _table("particles", _particles_of_tilts(particles))
        (folder / "particles.star").write_text("\n".join(lines) + "\n")
        overview = {
            "rlnTomoName": ["one"],
            "rlnTomoHand": [-1],
            "rlnTomoTiltSeriesPixelSize": [particles.pixel_size],
        }
        tilts = _tilts(particles)
        lines = [*_table("global", overview), *_table("one", tilts)]
        (folder / "tomograms.star").write_text("\n".join(lines) + "\n")
        path = folder / "optimisation_set.star"
        path.write_text(
            "data_\n\n_rlnTomoParticlesFile particles.star\n_rlnTomoTomogramsFile tomograms.star\n"
        )
        return path

    def write_unmodelled(self, particles: Sample, folder: Path) -> tuple[Path, str]:
        return self.write(particles, folder, "rlnOddZernike None"), "rlnOddZernike"


def _projections(particles: Sample) -> torch.Tensor:
    """Any rotations, one a tilt."""
    generator = torch.Generator().manual_seed(5)
    return rotations.random(len(particles.image_names), generator=generator).double()


def _tilts(particles: Sample) -> dict[str, list]:
    """The tilts of the one series."""
    rows = _rows(particles)
    projections = _projections(particles).tolist()
    tilts = {}
    for axis, letter in enumerate("XYZ"):
        vectors = [[*projection[axis], 0.0] for projection in projections]
        tilts[f"rlnTomoProj{letter}"] = [str(vector).replace(" ", "") for vector in vectors]
    names = ("rlnDefocusU", "rlnDefocusV", "rlnDefocusAngle", "rlnPhaseShift")
    return tilts | {name: rows[name] for name in names}


def _particles_of_tilts(particles: Sample) -> dict[str, list]:
    """Poses and origins in the tomogram, of which each tilt makes those of the sample."""
    count = len(particles.image_names)
    inverse = _projections(particles).mT
    angles = torch.rad2deg(rotations.to_euler(inverse @ particles.rotation))
    in_image = torch.nn.functional.pad(particles.origin, (0, 1))
    origin = (inverse @ in_image[:, :, None])[:, :, 0]
    rows: dict[str, list] = {
        "rlnTomoName": ["one"] * count,
        "rlnOpticsGroup": [1] * count,
        "rlnImageName": [f"{number}.mrcs" for number in range(count)],
        "rlnRandomSubset": (particles.half + 1).tolist(),
        "rlnTomoVisibleFrames": [],
    }
    for number in range(count):
        flags = [int(tilt == number) for tilt in range(count)]
        rows["rlnTomoVisibleFrames"].append(str(flags).replace(" ", ""))
    for axis, (angle, letter) in enumerate(zip(("Rot", "Tilt", "Psi"), "XYZ", strict=True)):
        rows[f"rlnAngle{angle}"] = angles[:, axis].tolist()
        rows[f"rlnOrigin{letter}Angst"] = origin[:, axis].tolist()
        rows[f"rlnCenteredCoordinate{letter}Angst"] = [0.0] * count
    return rows


def cryosparc_rows(particles: Sample, tilt: float = 0.0) -> np.ndarray:
    """Particles as cryoSPARC has them."""
    count = len(particles.image_names)
    numbers = [int(name.partition("@")[0]) for name in particles.image_names]
    optics = particles.optics
    columns = {
        "uid": np.arange(count, dtype=np.uint64) * 977 + 5,
        "blob/path": np.full(count, b">images.mrcs"),
        "blob/idx": np.array(numbers, np.uint32) - 1,
        "blob/shape": np.full((count, 2), particles.box, np.uint32),
        "blob/psize_A": np.full(count, particles.pixel_size),
        "ctf/accel_kv": optics.voltage.numpy(),
        "ctf/cs_mm": optics.spherical_aberration.numpy(),
        "ctf/amp_contrast": optics.amplitude_contrast.numpy(),
        "ctf/df1_A": optics.defocus_u.numpy(),
        "ctf/df2_A": optics.defocus_v.numpy(),
        "ctf/df_angle_rad": optics.defocus_angle.numpy(),
        "ctf/phase_shift_rad": optics.phase_shift.numpy(),
        "ctf/tilt_A": np.full((count, 2), tilt),
        "alignments3D/split": particles.half.numpy().astype(np.uint32),
        "alignments3D/pose": rotations.to_rotvec(particles.rotation.mT).numpy(),
        "alignments3D/shift": particles.origin.numpy() / (2 * particles.pixel_size),
        "alignments3D/psize_A": np.full(count, 2 * particles.pixel_size),
    }
    layout = [(name, column.dtype, column.shape[1:]) for name, column in columns.items()]
    rows = np.empty(count, layout)
    for name, column in columns.items():
        rows[name] = column
    return rows


def cryodrgn_ctf(particles: Sample) -> np.ndarray:
    """The CTF as cryoDRGN has it."""
    optics = particles.optics
    columns = [
        torch.full_like(optics.voltage, particles.box),
        torch.full_like(optics.voltage, particles.pixel_size),
        optics.defocus_u,
        optics.defocus_v,
        torch.rad2deg(optics.defocus_angle),
        optics.voltage,
        optics.spherical_aberration,
        optics.amplitude_contrast,
        torch.rad2deg(optics.phase_shift),
    ]
    return torch.stack(columns, 1).numpy()


def _head(name: str, labels: list[str]) -> list[str]:
    return ["", f"data_{name}", "", "loop_", *(f"_{label}" for label in labels)]


def _table(name: str, columns: dict[str, list]) -> list[str]:
    rows = [" ".join(map(str, values)) for values in zip(*columns.values(), strict=True)]
    return [*_head(name, list(columns)), *rows]


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
