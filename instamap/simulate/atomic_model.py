"""Atomic models, read with gemmi: where the atoms are, how they scatter electrons, how far they are
smeared out.
"""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from instamap.errors import DataError, OptionError

ENDINGS = (".pdb", ".ent", ".cif", ".mmcif")  # of the files of models; each may be followed by .gz
_USUAL = "HCNOSP"  # elements that the first letter of an atom's name stands for, in a residue


@dataclass(frozen=True)
class Atoms:
    """Atoms of a model.

    path: the file. position "P 3": Å, in the file's frame. b_factor "P": Å². occupancy "P": 0..1.
    kind "P": index into `elements`, whose scattering factor is Σᵢ weightsᵢ exp(-widthsᵢ s²/4):
    weights "K 5" in Å, widths "K 5" in Å².
    """

    path: Path
    position: Tensor
    b_factor: Tensor
    occupancy: Tensor
    kind: Tensor
    elements: list[str]
    weights: Tensor
    widths: Tensor

    @property
    def mass(self) -> Tensor:
        """The factor at s = 0, times the occupancy, of each atom: "P" in Å."""
        return self.weights.sum(1)[self.kind] * self.occupancy

    def __len__(self) -> int:
        return len(self.position)


def is_model(path: Path) -> bool:
    """Whether the name is that of a model."""
    return path.name.lower().removesuffix(".gz").endswith(ENDINGS)


def read(path: Path, b_factor: float | None = None) -> Atoms:
    """The first model of a PDB or mmCIF file, perhaps gzipped, without water and without what has
    no occupancy.

    Atoms that the file has no coordinates for, such as most hydrogens, are not there, nor is
    symmetry applied. b_factor: that of every atom, instead of the file's. Raises DataError naming
    the file, or the atom that cannot be used.
    """
    structure = load(path)
    structure.remove_waters()
    found = (
        [
            (residue, atom)
            for chain in structure[0]
            for residue in chain
            for atom in residue
            if atom.occ > 0
        ]
        if len(structure)
        else []
    )
    if not found:
        raise DataError(
            f"model '{path}' holds no atoms besides water; give a PDB or mmCIF file of a molecule"
        )
    displaced = any(atom.element.name == "X" for _, atom in found)
    names = [_element(path, residue, atom, displaced) for residue, atom in found]
    elements = sorted(set(names))
    kinds = {name: number for number, name in enumerate(elements)}

    def double(values):
        return torch.tensor(values, dtype=torch.float64)

    b_factors = [atom.b_iso if b_factor is None else b_factor for _, atom in found]
    for (residue, atom), value in zip(found, b_factors, strict=True):
        if not value >= 0:
            raise DataError(
                f"{_name(path, residue, atom)} has a B-factor of {value:g} Å²; give --b-factor for"
                " all atoms, at least 0"
            )
    tables = [_table(path, name) for name in elements]
    return Atoms(
        path,
        double([atom.pos.tolist() for _, atom in found]),
        double(b_factors),
        double([atom.occ for _, atom in found]),
        torch.tensor([kinds[name] for name in names]),
        elements,
        double([t.a for t in tables]),
        double([t.b for t in tables]),
    )


def load(path: Path):
    """What gemmi reads from a PDB or mmCIF file, perhaps gzipped. Raises OptionError without gemmi,
    DataError naming the file.
    """
    try:
        import gemmi
    except ImportError:
        raise OptionError(
            f"model '{path}' needs gemmi to be read; pip install 'instamap[models]'"
        ) from None
    if not path.is_file():
        raise DataError(f"model '{path}' does not exist; check the path")
    try:
        return gemmi.read_structure(str(path))
    except (RuntimeError, ValueError, OSError) as error:
        raise DataError(
            f"model '{path}' cannot be read ({error}); give a PDB or mmCIF file, perhaps gzipped"
        ) from None


def _element(path: Path, residue, atom, displaced: bool) -> str:
    """The element's name. Where a file leaves elements out and has names in the wrong columns
    (`displaced`), a residue's C-alpha looks like calcium: the first letter of the name decides
    there.
    """
    if not displaced or len(residue) == 1:
        name = atom.element.name
    else:
        first = atom.name.lstrip("0123456789'\"")[:1].upper()
        name = first if first in _USUAL else atom.element.name
    if name == "X":
        raise DataError(
            f"{_name(path, residue, atom)} is of no known element; fill in columns 77 and 78 of the"
            " PDB file"
        )
    return name


def _table(path: Path, name: str):
    """gemmi's five Gaussians of an element: electron scattering factors of Peng et al. 1996, of
    neutral atoms.
    """
    import gemmi

    table = gemmi.Element(name).c4322
    if table is None:
        raise DataError(
            f"model '{path}' has atoms of {name}, whose electron scattering factor is not"
            " tabulated; remove them"
        )
    return table


def _name(path: Path, residue, atom) -> str:
    return f"atom {atom.name} of residue {residue.name} {residue.seqid} of '{path}'"
