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
    fingerprints = np.zeros(len(first), np.uint64)
    is_varied = np.zeros(len(first), bool)
    for places in _batches(stacks, first):
        lines = stacks.middle_lines(first[places])
        is_varied[places] = (lines != lines[:, :1]).any(1)
        fingerprints[places] = _fingerprints(lines)
    varied = np.flatnonzero(is_varied)
    suspects = varied[_shared(fingerprints[varied])]
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


def _fingerprints(lines: npt.NDArray[np.float32]) -> npt.NDArray[np.uint64]:
    """A number for each line "n D", the same where all bits are the same, and hardly ever else."""
    bits = np.ascontiguousarray(lines).view(np.uint32).astype(np.uint64)
    random = np.random.default_rng(0)
    factors = random.integers(1 << 63, size=bits.shape[1], dtype=np.uint64)
    products: npt.NDArray[np.uint64] = (bits * (2 * factors + 1)).sum(1)  # modulo 2**64
    return products


def _shared(fingerprints: npt.NDArray[np.uint64]) -> Numbers:
    """Places of the fingerprints that several have."""
    _, number, count = np.unique(fingerprints, return_inverse=True, return_counts=True)
    return np.flatnonzero(count[number] > 1)


def parted(same: Tensor, identity: Tensor, half: Tensor) -> str:
    """Pairs of rows in different halves that have the same pixels under two names, in words; none
    if there are none.
    """
    _, first, number = np.unique(same.numpy(), return_index=True, return_inverse=True)
    earlier = torch.from_numpy(first[number.reshape(-1)])
    is_parted = (identity[earlier] != identity) & (half[earlier] != half)
    rows = is_parted.nonzero()[:, 0].tolist()
    pairs = [f"{int(earlier[row]) + 1} and {row + 1}" for row in rows]
    words = ", ".join(pairs[:MAX_ROWS_NAMED])
    rest = len(pairs) - MAX_ROWS_NAMED
    return f"rows {words}{f' and {rest} more pairs' if rest > 0 else ''}" if pairs else ""
