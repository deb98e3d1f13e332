"""The motion of an atomic model: atoms of a reference state, carried into others by the bending of
the map.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from instamap.errors import DataError, OptionError
from instamap.files import replacing
from instamap.motion.motion_model import Motion
from instamap.motion.transport import TOLERANCE, carried
from instamap.scene import Scene
from instamap.simulate.atomic_model import load

PDB = (".pdb", ".ent")
CIF = (".cif", ".mmcif")


@dataclass(frozen=True)
class Morph:
    """rms "S": displacement of the atoms in each state (Å). error: the largest that an inverse left
    (Å). lost: how many atoms, in any state, it leaves more than 0.01 Å; their places are the best
    that were found. outside: how many are outside the box in the reference, where the field is as
    at the box's surface.
    """

    rms: Tensor
    error: float
    lost: int
    outside: int


def check(path: Path) -> None:
    """Raises OptionError for a name that does not say which format is meant."""
    if path.suffix.lower() not in PDB + CIF:
        raise OptionError(
            f"output '{path}' is neither PDB nor mmCIF; give a name that ends in .pdb or .cif"
        )


def corner(scene: Scene, centred: bool) -> float:
    """Å, on each axis: where the field has its origin in a file whose own is the first voxel's
    centre or, `centred`, the field's.
    """
    return 0.0 if centred else scene.box // 2 * scene.pixel_size


def morph(
    motion: Motion,
    model: Path,
    out: Path,
    start: Tensor,
    states: Tensor,
    *,
    centred: bool = False,
    watch: Callable[[], None] = lambda: None,
) -> Morph:
    """Write a model for each of `states` "S L" to a PDB or mmCIF file, from the first of the file
    `model`, built in the state `start` "L".

    Atoms move by the mean over fits of `inverse.carried`; those outside the mask too, by the
    field's own values there. Anisotropic B-factors, whose axes would turn, are dropped. Coordinates
    are those of the map (an MRC file with its origin at zero: voxel i is at i times the pixel
    size), or, `centred`, count from voxel box // 2. Raises DataError, OptionError, OutputError.
    """
    check(out)
    structure = load(model)
    if not len(structure) or not sum(1 for _ in structure[0].all()):
        raise DataError(f"model '{model}' holds no atoms; give a PDB or mmCIF file of a molecule")
    while len(structure) > 1:
        del structure[-1]
    shift = corner(motion.scene, centred)
    y = (
        torch.tensor([site.atom.pos.tolist() for site in structure[0].all()], dtype=torch.float64)
        - shift
    )
    moved, left = zip(*[_moved(motion, y, start, z, watch) for z in states], strict=True)
    _write(structure, out, torch.stack(moved) + shift)
    half = 0.5 * motion.scene.box * motion.scene.pixel_size
    errors = torch.stack(left)
    rms = (torch.stack(moved) - y).square().sum(2).mean(1).sqrt()
    return Morph(
        rms,
        float(errors.max()),
        int((errors > TOLERANCE).any(0).sum()),
        int((y.abs() > half).any(1).sum()),
    )


def _moved(
    motion: Motion, y: Tensor, start: Tensor, z: Tensor, watch: Callable[[], None]
) -> tuple[Tensor, Tensor]:
    """Places "P 3" (float64) of one state, and the larger of what the fits' inverses left "P"."""
    x, left = zip(*[carried(half, y.float(), start, z) for half in motion.halves], strict=True)
    watch()
    # The difference is what single precision holds: where nothing moves, coordinates stay to the
    # last digit.
    return y + torch.stack([(there - y.float()).double() for there in x]).mean(0), torch.stack(
        left
    ).amax(0)


def _write(structure, out: Path, places: Tensor) -> None:
    """The first model at each of the places "S P 3", as models 1, 2, ..."""
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
        if out.suffix.lower() in PDB:
            structure.write_pdb(str(sibling))
        else:
            structure.make_mmcif_document().write_file(str(sibling))
