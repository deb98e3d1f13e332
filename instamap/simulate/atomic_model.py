"""Atomic models, read with gemmi: where the atoms are, how they scatter electrons, how far they are
smeared out.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from instamap.errors import DataError, OptionError

if TYPE_CHECKING:
    import gemmi

    AtomInResidue = tuple[gemmi.Residue, gemmi.Atom]

MODEL_ENDINGS = (".pdb", ".ent", ".cif", ".mmcif")  # each may be followed by .gz

ORGANIC_ELEMENTS = "HCNOSP"
"""Elements that the first letter of an atom's name stands for, in a residue."""


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
        factor = self.weights.sum(1)
        return factor[self.kind] * self.occupancy

    def __len__(self) -> int:
        return len(self.position)


def is_model(path: Path) -> bool:
    """Whether the name is that of a model."""
    name = path.name.lower().removesuffix(".gz")
    return name.endswith(MODEL_ENDINGS)


def read(path: Path, b_factor: float | None = None) -> Atoms:
    """The first model of a PDB or mmCIF file, perhaps gzipped.

    Water is left out, and what has no occupancy. Atoms that the file has no coordinates for, such
    as most hydrogens, are not there, nor is symmetry applied. b_factor: that of every atom, instead
    of the file's. Raises DataError naming the file, or the atom that cannot be used.
    """
    structure = load(path)
    structure.remove_waters()
    occupied = _occupied_atoms(structure)
    if not occupied:
        raise DataError(
            f"model '{path}' holds no atoms besides water; give a PDB or mmCIF file of a molecule"
        )
    _check_places(path, occupied)
    atoms = [atom for _, atom in occupied]
    displaced = any(atom.element.name == "X" for atom in atoms)
    names = [_element(path, residue, atom, displaced) for residue, atom in occupied]
    elements = sorted(set(names))
    number_of = {name: number for number, name in enumerate(elements)}
    b_factors = [atom.b_iso if b_factor is None else b_factor for atom in atoms]
    _check_b_factors(path, occupied, b_factors)
    tables = [_scattering_table(path, name) for name in elements]
    return Atoms(
        path=path,
        position=_double([atom.pos.tolist() for atom in atoms]),
        b_factor=_double(b_factors),
        occupancy=_double([atom.occ for atom in atoms]),
        kind=torch.tensor([number_of[name] for name in names]),
        elements=elements,
        weights=_double([table.a for table in tables]),
        widths=_double([table.b for table in tables]),
    )


def load(path: Path) -> "gemmi.Structure":
    """What gemmi reads from a PDB or mmCIF file, perhaps gzipped.

    Raises OptionError without gemmi, DataError naming the file.
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


def _double(values: Iterable) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def _occupied_atoms(structure: "gemmi.Structure") -> "list[AtomInResidue]":
    """Each atom of the first model that is there at all, with its residue."""
    if not len(structure):
        return []
    residues = [residue for chain in structure[0] for residue in chain]
    # an occupancy that is no number is kept, and refused
    return [(residue, atom) for residue in residues for atom in residue if not atom.occ <= 0]


def _check_places(path: Path, atoms: "list[AtomInResidue]") -> None:
    for residue, atom in atoms:
        place = atom.pos.tolist()
        if not all(math.isfinite(coordinate) for coordinate in place):
            words = ", ".join(f"{coordinate:g}" for coordinate in place)
            raise DataError(
                f"{_name(path, residue, atom)} has coordinates {words}, which are not all numbers;"
                " give the atom a place or remove it"
            )
        if not math.isfinite(atom.occ):
            raise DataError(
                f"{_name(path, residue, atom)} has an occupancy of {atom.occ:g}; give it a number"
                " from 0 to 1, or remove the atom"
            )


def _check_b_factors(
    path: Path,
    atoms: "list[AtomInResidue]",
    b_factors: list[float],
) -> None:
    for (residue, atom), value in zip(atoms, b_factors, strict=True):
        if not value >= 0:
            raise DataError(
                f"{_name(path, residue, atom)} has a B-factor of {value:g} Å²; give --b-factor for"
                " all atoms, at least 0"
            )


def _element(
    path: Path,
    residue: "gemmi.Residue",
    atom: "gemmi.Atom",
    displaced: bool,
) -> str:
    """The name of an atom's element.

    Where a file leaves elements out and has names in the wrong columns (`displaced`), a residue's
    C-alpha looks like calcium: the first letter of the name decides there.
    """
    name = atom.element.name
    if displaced and len(residue) > 1:
        letter = atom.name.lstrip("0123456789'\"")[:1].upper()
        if letter in ORGANIC_ELEMENTS:
            name = letter
    if name == "X":
        raise DataError(
            f"{_name(path, residue, atom)} is of no known element; fill in columns 77 and 78 of the"
            " PDB file"
        )
    return name


def _scattering_table(path: Path, name: str) -> "gemmi.C4322Coef":
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


def _name(path: Path, residue: "gemmi.Residue", atom: "gemmi.Atom") -> str:
    return f"atom {atom.name} of residue {residue.name} {residue.seqid} of '{path}'"
