"""Half sets that are far from equal."""

from torch import Tensor

from instamap.data.checks.finding import Finding

MIN_IMAGES = 20  # of fewer nothing is said
UNEVEN = 0.5  # smaller over larger half: doubtful below
LOPSIDED = 0.02  # likewise: no resolution comes of it


def check(half: Tensor, path: str, name: str) -> list[Finding]:
    """Findings of the halves "n" (0 or 1) that a column of the file gives."""
    count = len(half)
    second = int(half.sum())
    smaller = min(second, count - second)
    ratio = smaller / (count - smaller)
    if count < MIN_IMAGES or ratio >= UNEVEN:
        return []
    value = f"{name} of '{path}' has half sets of {count - second} and {second} images"
    remedy = f"remove the column {name} to draw equal halves, or add --no-halves"
    return [Finding("half-sets", value, remedy, is_wrong=ratio < LOPSIDED)]
