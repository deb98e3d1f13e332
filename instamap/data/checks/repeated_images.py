"""Images that hold the same pixels under several names: copies, whose noise is one."""

import hashlib
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from instamap.data.checks.finding import MAX_ROWS_NAMED, Finding, named
from instamap.data.stacks import Stacks

IMAGES_AT_ONCE = 1024
Numbers = npt.NDArray[np.int64]


def same_pixels(stacks: Stacks) -> Numbers:
    """For each row "n" a number that it shares with rows of the same pixels, whatever their names.

    The middle line of every image is compared, and where two agree, all of their pixels. Images
    whose middle line is of one value are left alone.
    """
    names = stacks.identity
    _, first = np.unique(names, return_index=True)  # a row of each name
    lines = np.full(len(first), b"", dtype=object)
    for places in _batches(stacks, first):
        found = stacks.middle_lines(first[places])
        varied = np.flatnonzero((found != found[:, :1]).any(1))
        for index in varied.tolist():
            lines[places[index]] = _digest(found[index])
    suspects = _shared(lines)
    if not len(suspects):
        return names
    number = np.arange(len(first))
    known: dict[bytes, int] = {}
    for places in _batches(stacks, first[suspects]):
        chosen = suspects[places]
        images = stacks.read(first[chosen])
        for place, image in zip(chosen.tolist(), images, strict=True):
            number[place] = known.setdefault(_digest(image), place)
    return number[names]


def _batches(stacks: Stacks, rows: Numbers) -> Iterator[Numbers]:
    """Places in `rows`, of as many images of one box as are read at once."""
    for places in stacks.by_box(rows):
        for start in range(0, len(places), IMAGES_AT_ONCE):
            yield places[start : start + IMAGES_AT_ONCE]


def check(stacks: Stacks, same: Numbers, path: object) -> list[Finding]:
    """The finding of copies. same "n": of `same_pixels`."""
    rows = copies(stacks, same)
    if not len(rows):
        return []
    value = (
        f"{len(rows)} images of '{path}' have the same pixels as others under another name,"
        f" {named(torch.from_numpy(rows))}"
    )
    remedy = "remove such copies, each of which counts again; here they stay in one half"
    return [Finding("copies", value, remedy)]


def copies(stacks: Stacks, same: Numbers) -> Numbers:
    """Rows, from 0, whose pixels an earlier row has under another name."""
    _, first = np.unique(same, return_index=True)
    number = np.unique(same, return_inverse=True)[1].reshape(-1)
    name_of_first = stacks.identity[first][number]
    return np.flatnonzero(stacks.identity != name_of_first)


def _digest(values: npt.NDArray[np.float32]) -> bytes:
    return hashlib.blake2b(np.ascontiguousarray(values).data, digest_size=16).digest()


def _shared(digests: npt.NDArray[np.object_]) -> Numbers:
    """Places of digests that several have; empty ones count as different."""
    seen: dict[bytes, int] = {}
    shared: set[int] = set()
    for place, digest in enumerate(digests.tolist()):
        if not digest:
            continue
        earlier = seen.setdefault(digest, place)
        if earlier != place:
            shared.update((earlier, place))
    return np.array(sorted(shared), dtype=np.int64)


def parted(same: Tensor, identity: Tensor, half: Tensor) -> str:
    """Pairs of rows in different halves that have the same pixels under two names, in words; none
    if there are none.
    """
    first: dict[int, int] = {}
    pairs = []
    for row, number in enumerate(same.tolist()):
        earlier = first.setdefault(number, row)
        if identity[earlier] != identity[row] and half[earlier] != half[row]:
            pairs.append(f"{earlier + 1} and {row + 1}")
    words = ", ".join(pairs[:MAX_ROWS_NAMED])
    rest = len(pairs) - MAX_ROWS_NAMED
    return f"rows {words}{f' and {rest} more pairs' if rest > 0 else ''}" if pairs else ""
