"""The motion of an atomic model: atoms of a reference, carried along by the bending of the map."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from instamap.errors import DataError, OptionError
from instamap.files import replacing
from instamap.motion.motion_model import MotionModel
from instamap.motion.transport import TOLERANCE, transport
from instamap.progress import SILENT, Progress
from instamap.scene import Scene
from instamap.simulate.atomic_model import load

if TYPE_CHECKING:
    import gemmi

PDB_ENDINGS = (".pdb", ".ent")
CIF_ENDINGS = (".cif", ".mmcif")


@dataclass(frozen=True)
class Morph:
    """How far the atoms of a model moved, and how well that is known.

    rms "S": displacement of the atoms in each conformation (Å). error: the largest that an inverse
    left (Å). lost: how many atoms, in any conformation, it leaves more than 0.01 Å; their places
    are the best that were found. outside: how many are outside the box in the reference, where the
    field is as at the box's surface.
    """

    rms: Tensor
    error: float
    lost: int
    outside: int


def check(path: Path) -> None:
    """Raises OptionError for a name that does not say which format is meant."""
    if path.suffix.lower() not in PDB_ENDINGS + CIF_ENDINGS:
        raise OptionError(
            f"output '{path}' is neither PDB nor mmCIF; give a name that ends in .pdb or .cif"
        )


def corner(scene: Scene, centred: bool) -> float:
    """Å, on each axis: where the field has its origin in a file.

    The file's own origin is the first voxel's centre or, `centred`, the field's.
    """
    return 0.0 if centred else scene.box // 2 * scene.pixel_size


def morph(
    motion: MotionModel,
    model: Path,
    out: Path,
    reference: Tensor,
    conformations: Tensor,
    *,
    centred: bool = False,
    progress: Progress = SILENT,
) -> Morph:
    """Write a model for each of `conformations` "S L" to a PDB or mmCIF file.

    It is the first of the file `model`, built in the conformation `reference` "L". Atoms move by
    the mean over fits of `transport`; those outside the mask too, by the field's own values
    there. Anisotropic B-factors, whose axes would turn, are dropped. Coordinates are those of the
    map (an MRC file with its origin at zero: voxel i is at i times the pixel size), or, `centred`,
    count from voxel box // 2. Raises DataError, OptionError, OutputError.
    """
    check(out)
    structure = _first_model(model)
    shift = corner(motion.scene, centred)
    places = [site.atom.pos.tolist() for site in structure[0].all()]
    y = torch.tensor(places, dtype=torch.float64) - shift
    moved_places = []
    errors_left = []
    for number, z in enumerate(conformations, 1):
        place, error = _carry(motion, y, reference, z)
        moved_places.append(place)
        errors_left.append(error)
        progress.counted("conformations", number, len(conformations))
    moved = torch.stack(moved_places)
    errors = torch.stack(errors_left)
    _write(structure, out, moved + shift)
    half_edge = 0.5 * motion.scene.box * motion.scene.pixel_size
    square = (moved - y).square().sum(2)
    lost = (errors > TOLERANCE).any(0)
    outside = (y.abs() > half_edge).any(1)
    return Morph(
        rms=square.mean(1).sqrt(),
        error=float(errors.max()),
        lost=int(lost.sum()),
        outside=int(outside.sum()),
    )


def _first_model(path: Path) -> "gemmi.Structure":
    """The structure of a file, with its first model alone. Raises DataError where that is empty."""
    structure = load(path)
    if not len(structure) or not sum(1 for _ in structure[0].all()):
        raise DataError(f"model '{path}' holds no atoms; give a PDB or mmCIF file of a molecule")
    while len(structure) > 1:
        del structure[-1]
    return structure


def _carry(
    motion: MotionModel,
    y: Tensor,
    reference: Tensor,
    z: Tensor,
) -> tuple[Tensor, Tensor]:
    """Places "P 3" (float64) in one conformation, and the larger of what the fits' inverses left
    "P".
    """
    single = y.float()
    displacements = []
    errors = []
    for half in motion.halves:
        place, error = transport(half, single, reference, z)
        # The difference is what single precision holds: where nothing moves, coordinates stay to
        # the last digit.
        displacements.append((place - single).double())
        errors.append(error)
    mean = torch.stack(displacements).mean(0)
    return y + mean, torch.stack(errors).amax(0)


def _write(structure: "gemmi.Structure", out: Path, places: Tensor) -> None:
    """Write the first model at each of the places "S P 3", as models 1, 2, ..."""
    import gemmi

    first = structure[0].clone()
    del structure[0]
    for place in places.tolist():
        model = first.clone()
        for site, (x, y, z) in zip(model.all(), place, strict=True):
            site.atom.pos = gemmi.Position(x, y, z)
            site.atom.aniso = gemmi.SMat33f(0, 0, 0, 0, 0, 0)  # its axes would have to turn along
        structure.add_model(model)
    structure.renumber_models()
    structure.setup_entities()
    with replacing(out) as sibling:
        if out.suffix.lower() in PDB_ENDINGS:
            structure.write_pdb(str(sibling))
        else:
            structure.make_mmcif_document().write_file(str(sibling))
