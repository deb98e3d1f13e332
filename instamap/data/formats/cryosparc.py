"""Particles of cryoSPARC: .cs tables, and .csg groups that name several tables of the same rows."""

import contextlib
import re
from collections.abc import Iterable
from pathlib import Path

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
from instamap.errors import DataError, is_out_of_memory
from instamap.geometry import rotations
from instamap.scene import Optics, Views

Rows = npt.NDArray[np.void]
Field = npt.NDArray[np.generic]

TERMS = {
    "image": "blob/path",
    "box": "blob/shape",
    "pixel size": "blob/psize_A",
    "half": "alignments3D/split",
    "premultiplied": "blob/premultiplied",
}
LATENT = "instamap/latent"
COPY = "instamap/symmetry_copy"
_UID = "uid"
_SUFFIXES = (".cs", ".csg")
_MAGIC = b"\x93NUMPY"
_COMPRESSED = b"\x94CSDAT"
# aberrations that the image model leaves out; all are 0 where they say nothing
_UNMODELLED = ("ctf/shift_A", "ctf/tilt_A", "ctf/trefoil_A", "ctf/tetra_A", "ctf/anisomag")
_METAFILE = re.compile(r"^\s*metafile:\s*['\"]?>?(.+?)['\"]?\s*$", re.MULTILINE)
_REFINED = "take the particles of a 3-D refinement"
_CTF = "take the group (.csg) of the job, or estimate the CTF first"
_REMEDY = "name a column that the file has"


class CryosparcFormat(InputFormat):
    """.cs files, joined by uid with the passthrough file beside them where that has what they lack;
    .csg files.

    A pose is a rotation vector of the transpose of RELION's matrix; shifts are in pixels of
    alignments3D/psize_A, with RELION's sign. Images are multiplied by blob/sign.
    """

    @classmethod
    def recognises(cls, path: Path) -> bool:
        """By its suffix, .cs or .csg."""
        return path.is_file() and path.name.endswith(_SUFFIXES)

    def read(self, path: Path, *, ctf: bool = True) -> ParticleTable:
        """The particles of a .cs or .csg file. Raises DataError."""
        columns = CryosparcColumns(path, _rows(path))
        alignment = columns.alignment()
        pixel_size = columns.numbers("blob/psize_A", remedy=_CTF)
        vectors = columns.vectors(f"{alignment}/pose", 3, _REFINED)
        shifts = columns.vectors(f"{alignment}/shift", 2, _REFINED)
        shift_unit = columns.numbers(f"{alignment}/psize_A", remedy=_REFINED)
        groups, group = np.unique(
            columns.numbers("ctf/exp_group_id", default=0.0), return_inverse=True
        )
        return ParticleTable(
            path=path,
            image_names=columns.image_names(),
            rotation=rotations.from_rotvec(torch.from_numpy(vectors)).mT,
            origin=torch.from_numpy(shifts * shift_unit[:, None]),
            optics=_optics(columns) if ctf else None,
            group=torch.from_numpy(group.reshape(-1).astype(np.int64)),
            group_names=tuple(f"{number:g}" for number in groups.tolist()),
            pixel_size=torch.from_numpy(pixel_size),
            box=_box(columns),
            premultiplied=False,
            phase_flipped=None,
            sign=_sign(columns),
            half=_half(columns, alignment),
            ignored=tuple(_unmodelled(columns)),
            columns=columns,
            terms={**TERMS, "half": f"{alignment}/split"},
            source=CryosparcSource(columns.rows, alignment),
        )


class CryosparcColumns(Columns):
    """The fields of a structured array."""

    def __init__(self, path: Path, rows: Rows) -> None:
        self.path = path
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __contains__(self, name: object) -> bool:
        return name in (self.rows.dtype.names or ())

    def texts(self, name: str, remedy: str = _REMEDY) -> list[str]:
        """Values as text. Raises DataError if there is no such field."""
        values = self._field(name, remedy)
        if values.dtype.kind == "S":
            return [value.decode("utf-8", "surrogateescape") for value in values.tolist()]
        return [str(value) for value in values.tolist()]

    def as_numbers(self, name: str, remedy: str = _REMEDY) -> Numbers:
        """Values as numbers. Raises DataError for a field of texts or vectors, or of none."""
        values = self._field(name, remedy)
        if values.ndim != 1 or values.dtype.kind not in "fiub":
            raise DataError(f"{name} of '{self.path}' is not one number a row; name another column")
        return values.astype(np.float64)

    def keys(self, name: str) -> list[object]:
        """Values by which particles are grouped. Raises DataError if there is no such field."""
        return list(self.texts(name))

    def vectors(self, name: str, length: int, remedy: str) -> Numbers:
        """Values "n length" of a field of vectors. Raises DataError."""
        values = self._field(name, remedy)
        if values.shape[1:] != (length,) or values.dtype.kind not in "fiu":
            raise DataError(f"{name} of '{self.path}' has not {length} numbers a row; {remedy}")
        numbers = values.astype(np.float64)
        wrong = ~np.isfinite(numbers).all(1)
        if wrong.any():
            row = int(wrong.argmax())
            raise DataError(
                f"{name} of row {row + 1} of '{self.path}' is not finite; remove that particle"
                f" ({wrong.sum()} of {len(self)} are wrong)"
            )
        return numbers

    def alignment(self) -> str:
        """The fields that hold the poses: alignments3D, or those of the only class of an ab-initio
        job. Raises DataError where there are several.
        """
        names = self.rows.dtype.names or ()
        if "alignments3D/pose" in names:
            return "alignments3D"
        classes = [
            name.partition("/")[0] for name in names if re.match(r"alignments_class_\d+/pose", name)
        ]
        if len(classes) > 1:
            raise DataError(
                f"'{self.path}' has poses of {len(classes)} classes; take the particles of one of"
                " them"
            )
        return classes[0] if classes else "alignments3D"

    def image_names(self) -> list[str]:
        """N@stack of each particle, N from 1; stacks are named from the project's folder."""
        paths = self.texts("blob/path", _CTF)
        indices = self.numbers("blob/idx", remedy=_CTF).astype(np.int64).tolist()
        return [
            f"{index + 1:06d}@{path.removeprefix('>')}"
            for index, path in zip(indices, paths, strict=True)
        ]

    def _field(self, name: str, remedy: str) -> Field:
        if name not in self:
            raise DataError(f"'{self.path}' has no column {name}; {remedy}")
        return self.rows[name]


class CryosparcSource(Source):
    """The rows of a .cs file, with what was joined to them."""

    suffix = ".cs"

    def __init__(self, rows: Rows, alignment: str) -> None:
        self._rows = rows
        self._alignment = alignment

    def take(self, rows: RowNumbers) -> "CryosparcSource":
        """Some particles, in the order given."""
        return CryosparcSource(self._rows[rows], self._alignment)

    def with_latents(self, latents: Tensor) -> "CryosparcSource":
        """Coordinates "n L" in the field instamap/latent."""
        return self._with_fields({LATENT: latents.to(torch.float32).numpy()})

    def with_copies(self, copy: Tensor) -> "CryosparcSource":
        """The number "n", from 0, of the copy that each row is, in the field
        instamap/symmetry_copy.
        """
        return self._with_fields({COPY: copy.to(torch.int32).numpy()})

    def with_poses(self, views: Views, changed: Mask) -> "CryosparcSource":
        """Poses and shifts of the particles that are `changed` "n"."""
        alignment = self._alignment
        rows = self._rows.copy()
        vectors = rotations.to_rotvec(views.rotation.mT).numpy()
        shifts = views.origin.numpy() / rows[f"{alignment}/psize_A"][:, None]
        rows[f"{alignment}/pose"][changed] = vectors[changed]
        rows[f"{alignment}/shift"][changed] = shifts[changed]
        return CryosparcSource(rows, alignment)

    def with_images(self, stack: str, rescaling: Rescaling) -> "CryosparcSource":
        """Images in one stack, in the file's order, with protein white."""
        count = len(self._rows)
        before = self._rows["blob/psize_A"]
        pixel_size = before * (rescaling.edge / rescaling.box)
        if rescaling.pixel_size is not None:
            pixel_size = np.full(count, rescaling.pixel_size)
        path = stack.encode("utf-8", "surrogateescape")
        fields = {
            "blob/path": np.full(count, path),
            "blob/idx": np.arange(count, dtype=np.uint32),
            "blob/shape": np.full((count, 2), rescaling.box, np.uint32),
            "blob/psize_A": pixel_size.astype(before.dtype),
            "blob/sign": np.ones(count, np.float32),
        }
        return self._with_fields(fields)

    def write(self, path: Path) -> None:
        """Write one .cs file. Raises OSError."""
        with path.open("wb") as file:
            np.save(file, self._rows, allow_pickle=False)

    def _with_fields(self, fields: dict[str, Field]) -> "CryosparcSource":
        return CryosparcSource(_with_fields(self._rows, fields), self._alignment)


def _with_fields(rows: Rows, fields: dict[str, Field]) -> Rows:
    """Rows with fields in their place, or at the end."""
    names = list(dict.fromkeys([*(rows.dtype.names or ()), *fields]))
    columns = {name: fields[name] if name in fields else rows[name] for name in names}
    layout = [(name, column.dtype, column.shape[1:]) for name, column in columns.items()]
    joined = np.empty(len(rows), layout)
    for name, column in columns.items():
        joined[name] = column
    return joined


def _rows(path: Path) -> Rows:
    """The rows of a .cs or .csg file with everything that belongs to them. Raises DataError."""
    if path.suffix == ".csg":
        return _rows_of_group(path)
    rows = _load(path)
    if {"blob/path", "ctf/accel_kv"} <= set(rows.dtype.names or ()):
        return rows
    others = [
        other for other in sorted(path.parent.glob("*passthrough_particles*.cs")) if other != path
    ]
    if len(others) > 1:
        raise DataError(
            f"'{path}' lacks images or CTF, and {len(others)} passthrough files are beside it; give"
            " the group (.csg) of the job, which names the right one"
        )
    for other in others:
        rows = _joined(rows, _load(other), path, other)
    return rows


def _rows_of_group(path: Path) -> Rows:
    text = path.read_text(encoding="utf-8", errors="surrogateescape")
    names = list(dict.fromkeys(_METAFILE.findall(text)))
    if not names:
        raise DataError(f"'{path}' names no metafile; give a .csg file of particles, or a .cs file")
    files = [path.parent / Path(name).name for name in names]
    first = files[0]
    rows = _load(first)
    for other in files[1:]:
        rows = _joined(rows, _load(other), first, other)
    return rows


def _load(path: Path) -> Rows:
    """The structured array of a .cs file; no Python object is ever made of it."""
    try:
        with path.open("rb") as file:
            magic = file.read(len(_MAGIC))
        if magic == _COMPRESSED:
            raise DataError(
                f"'{path}' is compressed; export it with cryosparc-tools as a plain .cs file"
            )
        # as a map, so that a header that claims more than the file holds costs nothing
        rows = np.array(_mapped(path))
    except FileNotFoundError as error:
        raise DataError(
            f"'{path}' does not exist; give a .cs file, or keep the files of a job in one folder"
        ) from error
    except DataError:
        raise
    except Exception as error:  # damaged headers fail in many ways
        if is_out_of_memory(error):
            raise
        raise DataError(
            f"'{path}' can't be read as a .cs file: it is cut off or damaged; copy it again"
        ) from error
    if rows.dtype.names is None or rows.ndim != 1 or _UID not in rows.dtype.names:
        raise DataError(f"'{path}' has no rows with a uid; give a .cs file of particles")
    if not len(rows):
        raise DataError(f"'{path}' has no rows; select some particles")
    repeated = len(rows) - len(np.unique(rows[_UID]))
    if repeated:
        raise DataError(
            f"{repeated} of {len(rows)} rows of '{path}' repeat a uid, by which files are joined;"
            " remove them in cryoSPARC (Remove Duplicates), or give particles that were not"
            " expanded by symmetry"
        )
    return rows


def _mapped(path: Path) -> Rows:
    with contextlib.suppress(MemoryError):  # of Python's parser, which is no shortage
        return np.load(path, mmap_mode="r", allow_pickle=False)
    raise ValueError("its header is nested too deeply")


def _joined(rows: Rows, more: Rows, path: Path, other: Path) -> Rows:
    """Rows with the fields that only `more` has, of the row with the same uid. Raises DataError."""
    order = np.argsort(more[_UID])
    place = np.searchsorted(more[_UID], rows[_UID], sorter=order)
    found = order[np.minimum(place, len(more) - 1)]
    missing = more[_UID][found] != rows[_UID]
    if missing.any():
        row = int(missing.argmax())
        raise DataError(
            f"row {row + 1} of '{path}' (uid {rows[_UID][row]}) is not in '{other}', nor are"
            f" {missing.sum() - 1} others of {len(rows)}; give files of one job"
        )
    names = [name for name in more.dtype.names or () if name not in (rows.dtype.names or ())]
    return _with_fields(rows, {name: more[name][found] for name in names})


def _optics(columns: CryosparcColumns) -> Optics:
    def number(name: str, default: float | None = None) -> Tensor:
        return torch.from_numpy(columns.numbers(f"ctf/{name}", default=default, remedy=_CTF))

    return Optics(
        voltage=number("accel_kv"),
        spherical_aberration=number("cs_mm"),
        amplitude_contrast=number("amp_contrast"),
        defocus_u=number("df1_A"),
        defocus_v=number("df2_A"),
        defocus_angle=number("df_angle_rad"),
        phase_shift=number("phase_shift_rad", 0.0),
        b_factor=number("bfactor", 0.0),
        scale=number("scale", 1.0),
    )


def _box(columns: CryosparcColumns) -> Tensor | None:
    if "blob/shape" not in columns:
        return None
    return torch.from_numpy(columns.vectors("blob/shape", 2, _CTF)[:, 0])


def _sign(columns: CryosparcColumns) -> Tensor | None:
    """Factors "n" of images; None where all are 1."""
    sign = columns.numbers("blob/sign", default=1.0, allowed=lambda v: abs(v) == 1, words="1 or -1")
    return None if (sign == 1).all() else torch.from_numpy(sign)


def _half(columns: CryosparcColumns, alignment: str) -> Tensor | None:
    name = f"{alignment}/split"
    if name not in columns:
        return None
    split = columns.numbers(name, allowed=lambda v: (v == 0) | (v == 1), words="0 or 1")
    if split.min() == split.max():  # as jobs leave it that do not split
        return None
    return torch.from_numpy(split.astype(np.int64))


def _unmodelled(columns: CryosparcColumns) -> Iterable[str]:
    return [name for name in _UNMODELLED if name in columns and columns.rows[name].any()]
