"""Particles of cryoDRGN: poses and CTF in pickles of NumPy arrays, images in a stack beside."""

import io
import math
import pickle
import pickletools
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from instamap.data.formats.base import InputFormat
from instamap.data.particle_table import (
    Columns,
    Mask,
    Numbers,
    ParticleTable,
    Rescaling,
    RowNumbers,
    Source,
)
from instamap.errors import DataError
from instamap.scene import Optics, Views

TERMS = {"image": "row", "box": "D", "pixel size": "Apix", "half": "half"}
# columns of the CTF's array, in cryoDRGN's order
CTF_COLUMNS = ("D", "Apix", "dfU", "dfV", "dfAng", "kV", "Cs", "w", "phase")
_DEGREE = math.pi / 180
_REMEDY = "cryoDRGN's files have only " + ", ".join(CTF_COLUMNS)
_ORTHONORMAL = 1e-3  # what float16 would leave of a rotation


class CryodrgnFormat(InputFormat):
    """Pickles of poses: rotations "n 3 3" as RELION's, and shifts "n 2" in fractions of the box.

    The CTF is in a pickle beside it: of the same name with "ctf" in place of "poses" or "pose", or
    ctf.pkl. The images are those of the only .mrcs file of the folder. Pickles are read by an
    unpickler that knows NumPy arrays and nothing else, so that no code is run.
    """

    @classmethod
    def recognises(cls, path: Path) -> bool:
        """By its suffix, .pkl."""
        return path.is_file() and path.suffix == ".pkl"

    def read(self, path: Path, *, ctf: bool = True) -> ParticleTable:
        """The particles of a pickle of poses. Raises DataError."""
        rotation, shift = _poses(path)
        columns = CryodrgnColumns(path, _ctf(path, len(rotation)))
        box = columns.numbers("D", allowed=_positive, words="a number above 0")
        pixel_size = columns.numbers("Apix", allowed=_positive, words="a length in Å above 0")
        edge = torch.from_numpy(box * pixel_size)
        count = len(rotation)
        stack = _stack(path)
        return ParticleTable(
            path=path,
            image_names=[f"{number:06d}@{stack}" for number in range(1, count + 1)],
            rotation=torch.from_numpy(rotation),
            origin=torch.from_numpy(shift) * edge[:, None],
            optics=_optics(columns) if ctf else None,
            group=torch.zeros(count, dtype=torch.long),
            group_names=("1",),
            pixel_size=torch.from_numpy(pixel_size),
            box=torch.from_numpy(box),
            premultiplied=False,
            phase_flipped=None,
            sign=None,
            half=None,
            ignored=(),
            columns=columns,
            terms=TERMS,
            source=CryodrgnSource(rotation, shift, edge),
        )


class CryodrgnColumns(Columns):
    """The columns of the CTF."""

    def __init__(self, path: Path, ctf: Numbers) -> None:
        self.path = path
        self._ctf = ctf

    def __len__(self) -> int:
        return len(self._ctf)

    def __contains__(self, name: object) -> bool:
        return name in CTF_COLUMNS

    def texts(self, name: str, remedy: str = _REMEDY) -> list[str]:
        """Values as text. Raises DataError if there is no such column."""
        return [str(value) for value in self.as_numbers(name, remedy).tolist()]

    def as_numbers(self, name: str, remedy: str = _REMEDY) -> Numbers:
        """Values as numbers. Raises DataError if there is no such column."""
        if name not in CTF_COLUMNS:
            raise DataError(f"'{self.path}' has no column {name}; {remedy}")
        return self._ctf[:, CTF_COLUMNS.index(name)]

    def keys(self, name: str) -> list[object]:
        """Values by which particles are grouped. Raises DataError if there is no such column."""
        return list(self.as_numbers(name).tolist())


class CryodrgnSource(Source):
    """Rotations and shifts. Coordinates and images have no place in them."""

    suffix = ".pkl"

    def __init__(self, rotation: Numbers, shift: Numbers, edge: Tensor) -> None:
        """rotation "n 3 3". shift "n 2": in fractions of the box. edge "n": of the box, in Å."""
        self._rotation = rotation
        self._shift = shift
        self._edge = edge

    def take(self, rows: RowNumbers) -> "CryodrgnSource":
        """Some particles, in the order given."""
        return CryodrgnSource(self._rotation[rows], self._shift[rows], self._edge[rows])

    def with_latents(self, latents: Tensor) -> "CryodrgnSource":
        """The same: coordinates are in latents.npy, in the order of the rows."""
        return self

    def with_poses(self, views: Views, changed: Mask) -> "CryodrgnSource":
        """Poses of the particles that are `changed` "n"."""
        shift = (views.origin / self._edge[:, None]).numpy()
        rotation = np.where(changed[:, None, None], views.rotation.numpy(), self._rotation)
        return CryodrgnSource(rotation, np.where(changed[:, None], shift, self._shift), self._edge)

    def with_images(self, stack: str, rescaling: Rescaling) -> "CryodrgnSource":
        """Refused: the CTF's pickle, which says sizes, is another file."""
        raise DataError(
            f"images of a cryoDRGN pickle can't be written to '{stack}' with a file that names"
            " them; scale them with cryodrgn downsample"
        )

    def write(self, path: Path) -> None:
        """Write a pickle of poses. Raises OSError."""
        with path.open("wb") as file:
            pickle.dump((self._rotation, self._shift), file, protocol=4)


_MEMORIES = ("PUT", "BINPUT", "LONG_BINPUT")


class _ArrayUnpickler(pickle.Unpickler):
    """Knows NumPy arrays and nothing else."""

    def find_class(self, module: str, name: str) -> Any:
        """What a pickle of arrays asks for. Raises UnpicklingError for anything else."""
        package = module.replace("numpy._core", "numpy.core")
        known = {
            ("numpy", "ndarray"): np.ndarray,
            ("numpy", "dtype"): _dtype,
            ("numpy.core.multiarray", "_reconstruct"): _empty_array,
            ("numpy.core.numeric", "_frombuffer"): _from_buffer,
            ("_codecs", "encode"): _encode,
        }
        if (package, name) not in known:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, which is no NumPy array")
        return known[package, name]


def _dtype(name: Any, *flags: Any) -> np.dtype[Any]:
    """A type of numbers."""
    found = np.dtype(name)
    if found.kind not in "fiub":
        raise pickle.UnpicklingError(f"it holds {found}, which are no numbers")
    return found


def _empty_array(cls: type, shape: tuple[int, ...], typecode: Any) -> npt.NDArray[Any]:
    """The array that is filled in next: whatever its shape was said to be, it holds nothing yet."""
    return np.ndarray((0,), np.int8)


def _from_buffer(buffer: Any, dtype: Any, shape: Any, order: Any) -> npt.NDArray[Any]:
    return np.frombuffer(buffer, dtype=dtype).reshape(shape, order=order)


def _encode(text: str, encoding: str) -> bytes:
    """The bytes of an array as old pickles write them."""
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"it encodes text as {encoding}")
    return text.encode("latin1")


def _load(path: Path) -> Any:
    try:
        data = path.read_bytes()
        _check_sizes(data)
        return _ArrayUnpickler(io.BytesIO(data)).load()
    except FileNotFoundError as error:
        raise DataError(f"'{path}' does not exist; give a pickle of cryoDRGN's poses") from error
    except Exception as error:  # damaged pickles fail in any way
        reason = " ".join(str(error).split()) or type(error).__name__
        raise DataError(
            f"'{path}' can't be read as a pickle of arrays ({reason}); make it anew with cryodrgn"
            " parse_pose_star or parse_ctf_star"
        ) from error


def _check_sizes(data: bytes) -> None:
    """Raises UnpicklingError where a pickle asks for more room than its bytes warrant: for the
    number under which an object is remembered, the unpickler makes a table of that length. What is
    longer than the pickle itself raises ValueError.
    """
    for code, argument, _ in pickletools.genops(data):
        if code.name in _MEMORIES and argument is not None and int(argument) > len(data):
            raise pickle.UnpicklingError(f"it remembers an object as number {argument}")


def _poses(path: Path) -> tuple[Numbers, Numbers]:
    """Rotations "n 3 3" and shifts "n 2" in fractions of the box."""
    loaded = _load(path)
    parts = list(loaded) if isinstance(loaded, tuple | list) else [loaded]
    arrays = [part for part in parts if isinstance(part, np.ndarray)]
    if not arrays or len(arrays) != len(parts) or arrays[0].shape[1:] != (3, 3) or len(arrays) > 2:
        raise DataError(
            f"'{path}' holds no rotations of 3 x 3; give cryoDRGN's poses.pkl, with ctf.pkl beside"
            " it"
        )
    rotation = arrays[0].astype(np.float64)
    count = len(rotation)
    shift = arrays[1].astype(np.float64) if len(arrays) == 2 else np.zeros((count, 2))
    if shift.shape != (count, 2):
        raise DataError(
            f"'{path}' has {count} rotations and shifts of shape {shift.shape}; make it anew"
        )
    _check_rotations(path, rotation)
    far = ~(np.abs(shift) <= 1).all(1)
    if far.any():
        row = int(far.argmax())
        raise DataError(
            f"the shift of row {row + 1} of '{path}' is {shift[row].tolist()}; it must be in"
            " fractions of the box, as cryoDRGN writes it since version 0.3"
        )
    return rotation, shift


def _check_rotations(path: Path, rotation: Numbers) -> None:
    if not len(rotation):
        raise DataError(f"'{path}' has no rows; select some particles")
    with np.errstate(invalid="ignore", over="ignore"):
        product = rotation @ rotation.transpose(0, 2, 1)
        orthonormal = (np.abs(product - np.eye(3)) < _ORTHONORMAL).all((1, 2))
        proper = orthonormal & (np.linalg.det(np.nan_to_num(rotation)) > 0)
    if not proper.all():
        row = int((~proper).argmax())
        raise DataError(
            f"the pose of row {row + 1} of '{path}' is no rotation; make the file anew"
            f" ({(~proper).sum()} of {len(rotation)} are wrong)"
        )


def _ctf(path: Path, count: int) -> Numbers:
    """The CTF's array "n 9", from the file beside the poses."""
    names = [path.name.replace(word, "ctf") for word in ("poses", "pose") if word in path.name]
    files = [path.with_name(name) for name in dict.fromkeys([*names, "ctf.pkl"])]
    found = [file for file in files if file.is_file() and file != path]
    if not found:
        raise DataError(
            f"the CTF of '{path}' is missing (looked for '{files[0]}'); put cryoDRGN's ctf.pkl"
            " beside it"
        )
    ctf = _load(found[0])
    if not isinstance(ctf, np.ndarray) or ctf.shape != (count, len(CTF_COLUMNS)):
        shape = ctf.shape if isinstance(ctf, np.ndarray) else type(ctf).__name__
        raise DataError(
            f"'{found[0]}' is of shape {shape}, not ({count}, {len(CTF_COLUMNS)}) as the poses of"
            f" '{path}' ask for; give the CTF of the same particles"
        )
    return ctf.astype(np.float64)


def _stack(path: Path) -> str:
    """The name of the stack beside the poses."""
    stacks = sorted(file.name for file in path.parent.glob("*.mrcs"))
    if len(stacks) != 1:
        found = ", ".join(stacks[:5]) or "none"
        raise DataError(
            f"the images of '{path}' are unknown: they must be in the only .mrcs file beside it"
            f" ({found} found); put it there"
        )
    return stacks[0]


def _positive(values: Numbers) -> Mask:
    return values > 0


def _optics(columns: CryodrgnColumns) -> Optics:
    def number(name: str) -> Tensor:
        return torch.from_numpy(columns.numbers(name))

    voltage = number("kV")
    return Optics(
        voltage=voltage,
        spherical_aberration=number("Cs"),
        amplitude_contrast=number("w"),
        defocus_u=number("dfU"),
        defocus_v=number("dfV"),
        defocus_angle=number("dfAng") * _DEGREE,
        phase_shift=number("phase") * _DEGREE,
        b_factor=torch.zeros_like(voltage),
        scale=torch.ones_like(voltage),
    )
