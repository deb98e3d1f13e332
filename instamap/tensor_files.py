"""Files of tensors and plain values, from which no code is ever loaded: safetensors, .npz and .npy.

safetensors (https://github.com/huggingface/safetensors): eight bytes with the length of the
header, the header, which is JSON, and the numbers. .npz and .npy are NumPy's. Each file of the
first two has a checksum of what is in it, by which damage is noticed; a reader takes no more memory
than a few times the bytes of the file.
"""

import hashlib
import json
import math
import os
import struct
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from torch import Tensor

from instamap import checksums
from instamap.errors import is_out_of_memory
from instamap.files import refusal, replacing

Array = np.ndarray[Any, Any]

SUM = "sha256"  # the name of the checksum in a file
VALUES = "instamap"  # the name of the plain values in the header of a safetensors file
METADATA = "__metadata__"
ALIGNMENT = 8  # bytes: of the numbers in the file
MAX_HEADER = 100_000_000  # bytes, as the format says
MAX_DIMENSIONS = 32
PIECE = 1 << 24  # bytes that are read at once
_LENGTH = struct.Struct("<Q")
_TYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
_NAMES = {dtype: name for name, dtype in _TYPES.items()}
_PLAIN_KINDS = "biufU"  # of NumPy's types: truth values, numbers and text


class DamagedFile(Exception):
    """A file that is not whole, or not of the kind that is asked for; the words say why."""


def reason_of(error: Exception) -> str:
    """Why a file cannot be read, in words."""
    if isinstance(error, OSError):
        return refusal(error)[0]
    return str(error)


# safetensors


def write_safetensors(
    path: str | Path, tensors: Mapping[str, Tensor], values: Mapping[str, Any]
) -> None:
    """Writes tensors and plain values (what JSON can hold), whole or not at all. Raises OutputError
    where the file system refuses.
    """
    # Large items first: so all are aligned, as readers of other programs expect.
    order = sorted(tensors, key=lambda name: (-tensors[name].element_size(), name))
    table: dict[str, Any] = {}
    parts = []
    end = 0
    for name in order:
        data = _bytes_of(tensors[name])
        begin = end
        end += len(data)
        shape = list(tensors[name].shape)
        table[name] = {
            "dtype": _NAMES[tensors[name].dtype],
            "shape": shape,
            "data_offsets": [begin, end],
        }
        parts.append(data)
    text = json.dumps(values)
    digest = _sum_of(table, text, parts)
    header = json.dumps({METADATA: {VALUES: text, SUM: digest}, **table}).encode()
    header += b" " * (-len(header) % ALIGNMENT)
    with replacing(path) as sibling, sibling.open("wb") as file:
        file.write(_LENGTH.pack(len(header)))
        file.write(header)
        for part in parts:
            file.write(part.data)


def read_safetensors(path: str | Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors and the plain values that `write_safetensors` wrote.

    Raises DamagedFile, and OSError where there is no file.
    """
    with open(path, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        header, begin = _read_header(file, size)
        data = np.empty(size - begin, np.uint8)
        _fill(data, file)
    metadata = header.pop(METADATA, None)
    if not isinstance(metadata, dict):
        raise DamagedFile("it has no checksum: another program wrote it")
    text = metadata.get(VALUES)
    if not isinstance(text, str) or metadata.get(SUM) != _sum_of(header, text, [data]):
        raise DamagedFile("its checksum differs")
    values = _json(text)
    tensors = {name: _tensor(entry, data) for name, entry in header.items()}
    return tensors, values


def _bytes_of(tensor: Tensor) -> Array:
    """The numbers of a tensor as bytes, in the order of its last axis."""
    if not tensor.numel():
        return np.empty(0, np.uint8)
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    if flat.stride(0) != 1:  # a single number may have any
        flat = torch.empty_like(flat).copy_(flat).as_strided((len(flat),), (1,))
    return flat.view(torch.uint8).numpy()


def _sum_of(table: Mapping[str, Any], text: str, parts: list[Array]) -> str:
    digest = hashlib.sha256()
    head = json.dumps([table, text], sort_keys=True)
    digest.update(head.encode())
    for part in parts:
        digest.update(part.data)
    return digest.hexdigest()


def _read_header(file: IO[bytes], size: int) -> tuple[dict[str, Any], int]:
    """The header, and where the numbers begin."""
    start = file.read(_LENGTH.size)
    if len(start) < _LENGTH.size:
        raise DamagedFile("it is cut off")
    (length,) = _LENGTH.unpack(start)
    begin = _LENGTH.size + length
    if length > MAX_HEADER or begin > size:
        raise DamagedFile("it is cut off, or is no safetensors file")
    return _json(file.read(length)), begin


def _json(text: str | bytes) -> dict[str, Any]:
    try:
        values = json.loads(text)
    except (ValueError, RecursionError):
        raise DamagedFile("its header cannot be read") from None
    if not isinstance(values, dict):
        raise DamagedFile("its header holds no names")
    return values


def _tensor(entry: Any, data: Array) -> Tensor:
    """A tensor by its entry in the header, whose checksum was right."""
    try:
        dtype = _TYPES[entry["dtype"]]
        shape = entry["shape"]
        begin, end = entry["data_offsets"]
        piece = data[begin:end].copy()
        if not len(piece):
            return torch.zeros(shape, dtype=dtype)
        return torch.from_numpy(piece).view(dtype).reshape(shape)
    except (LookupError, TypeError, ValueError, RuntimeError):
        raise DamagedFile("its header does not fit its numbers") from None


# NumPy's


def write_npz(path: str | Path, arrays: Mapping[str, Array]) -> None:
    """Writes arrays and their checksum, whole or not at all. Raises OutputError where the file
    system refuses.
    """
    contiguous = {
        name: np.ascontiguousarray(one).reshape(one.shape) for name, one in arrays.items()
    }
    digest = np.array(checksums.of_arrays(contiguous))
    # A file object: numpy would add .npz to the name of the temporary sibling.
    with replacing(path) as sibling, sibling.open("wb") as file:
        np.savez(file, **{**contiguous, SUM: digest})  # type: ignore[arg-type]


def read_npz(path: str | Path) -> dict[str, Array]:
    """The arrays that `write_npz` wrote. Raises DamagedFile, and OSError where there is no file."""
    size = os.stat(path).st_size
    try:
        with zipfile.ZipFile(path) as archive:
            arrays = {}
            for info in archive.infolist():
                if info.compress_type != zipfile.ZIP_STORED or info.file_size > size:
                    raise DamagedFile("it has parts that are longer than the file")
                with archive.open(info) as part:
                    arrays[info.filename.removesuffix(".npy")] = _array(part, info.file_size)
    except (DamagedFile, FileNotFoundError):
        raise
    except Exception as error:  # damaged archives fail in many ways
        if is_out_of_memory(error):
            raise
        raise DamagedFile("it is cut off, or is no file of arrays") from error
    digest = arrays.pop(SUM, None)
    if digest is None:
        raise DamagedFile("it has no checksum: an earlier version or another program wrote it")
    if digest.ndim or str(digest) != checksums.of_arrays(arrays):
        raise DamagedFile("its checksum differs")
    return arrays


def read_npy(path: str | Path) -> Array:
    """The array in a .npy file. Raises DamagedFile, and OSError where there is no file."""
    with open(path, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        try:
            return _array(file, size)
        except DamagedFile:
            raise
        except Exception as error:  # damaged headers fail in many ways
            if is_out_of_memory(error):
                raise
            raise DamagedFile("it is cut off, or is no array") from error


def _fill(data: Array, file: IO[bytes]) -> None:
    """Reads bytes into an array of them. Raises DamagedFile where there are too few."""
    for start in range(0, len(data), PIECE):
        piece = data[start : start + PIECE]
        found = file.read(len(piece))
        if len(found) != len(piece):
            raise DamagedFile("it is cut off")
        piece[:] = np.frombuffer(found, np.uint8)


def _array(file: IO[bytes], size: int) -> Array:
    """The array of plain numbers or text in an open .npy file of so many bytes."""
    version = np.lib.format.read_magic(file)
    readers = {
        (1, 0): np.lib.format.read_array_header_1_0,
        (2, 0): np.lib.format.read_array_header_2_0,
    }
    try:
        shape, columns_first, dtype = readers[version](file)
    except MemoryError:  # of Python's parser
        raise DamagedFile("its header is nested too deeply") from None
    if dtype.kind not in _PLAIN_KINDS or dtype.hasobject or len(shape) > MAX_DIMENSIONS:
        raise DamagedFile("it holds other things than numbers")
    items = math.prod(shape)
    if min(shape, default=0) < 0 or items * dtype.itemsize != size - file.tell():
        raise DamagedFile("it has more or fewer numbers than it says")
    flat = np.empty(items, dtype)
    if items:
        _fill(flat.view("u1"), file)
    if file.read(1):  # a zip archive's own checksum is looked at when its end is read
        raise DamagedFile("it has more numbers than it says")
    return flat.reshape(shape, order="F" if columns_first else "C")
