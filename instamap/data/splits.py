"""Rows of a set of particles that must not be parted, and sets drawn so that they are not: halves
and the held-out one.
"""

from collections.abc import Hashable, Iterable, Sequence

import torch
from torch import Tensor

MIN_HELD_OUT_IMAGES = 3  # of fewer, one strange image would decide when every fit stops
HALVES = ("half1", "half2")
WHOLE = "map"  # the set of all rows that are not held out, where there are no halves


def group_numbers(keys: Iterable[Hashable]) -> Tensor:
    """For each key a number "n", counted from 0 in the keys' order, that equal keys share."""
    numbers: dict[Hashable, int] = {}
    of_keys = []
    for key in keys:
        number = numbers.setdefault(key, len(numbers))
        of_keys.append(number)
    return torch.tensor(of_keys)


def exclusive_groups(links: Sequence[Tensor]) -> Tensor:
    """For each row a number "n", counted from 0 in the rows' order, that rows which must not be
    parted share.

    links: numbers "n" from 0; rows with the same number in any of them belong together, and so on,
    from row to row.
    """
    group = torch.arange(len(links[0]))
    before = None
    while before is None or not torch.equal(group, before):
        before = group
        for link in links:
            group = _lowest(group, link)
    # a group is called by its lowest row, so that order is that of the rows
    return group.unique(return_inverse=True)[1]


def _lowest(group: Tensor, link: Tensor) -> Tensor:
    """For each row the lowest of the groups "n" of the rows that share its number in `link`."""
    count = int(link.max()) + 1
    lowest = group.new_full((count,), len(group))
    return lowest.scatter_reduce(0, link, group, "amin")[link]


def parted_row(group: Tensor, half: Tensor) -> int | None:
    """The first row "n" whose group is in both halves; None if there is none."""
    ones = torch.bincount(group, weights=half.double())
    parted = (ones > 0) & (ones < torch.bincount(group))
    rows = parted[group].nonzero()
    return int(rows[0, 0]) if len(rows) else None


def balanced_halves(group: Tensor, seed: int) -> Tensor:
    """A half, 0 or 1, for each row "n": groups in random order, the largest first, each to the
    smaller half.
    """
    sizes = torch.bincount(group)
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(sizes), generator=generator)
    by_size = torch.argsort(sizes[order], descending=True, stable=True)
    order = order[by_size]
    totals = [0, 0]
    chosen = []
    for size in sizes[order].tolist():
        smaller = int(totals[1] < totals[0])
        totals[smaller] += size
        chosen.append(smaller)
    half = torch.empty(len(sizes), dtype=torch.long)
    half[order] = torch.tensor(chosen)
    return half[group]


def draw_sets(
    group: Tensor,
    half: Tensor | None,
    *,
    held_out: float,
    seed: int,
    excluded: Tensor | None = None,
) -> tuple[dict[str, Tensor], Tensor]:
    """Row numbers of each set that is fitted, by name, and of the held-out set.

    group "n": of rows that must not be parted, counted from 0. half "n": 0 or 1; None: all rows are
    one set. held_out: the share of the groups that is drawn for that set. excluded: rows that no
    set gets.
    """
    is_held_out = _draw_held_out(group, held_out, seed)
    is_used = torch.ones(len(group), dtype=torch.bool)
    if excluded is not None:
        is_used[excluded] = False
    is_fitted = is_used & ~is_held_out
    rows = {}
    if half is None:
        rows[WHOLE] = _rows_where(is_fitted)
    else:
        for number, name in enumerate(HALVES):
            rows[name] = _rows_where(is_fitted & (half == number))
    return rows, _rows_where(is_held_out & is_used)


def _draw_held_out(group: Tensor, share: float, seed: int) -> Tensor:
    """Which rows "n" are in a share of the groups, drawn with the seed; in more of them where these
    would be fewer than MIN_HELD_OUT_IMAGES rows.
    """
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(int(group.max()) + 1, generator=generator)
    rows_so_far = torch.bincount(group)[order].cumsum(0)
    enough = 1 + int((rows_so_far < MIN_HELD_OUT_IMAGES).sum())
    count = max(enough, round(share * len(order)))
    return torch.isin(group, order[:count])


def _rows_where(chosen: Tensor) -> Tensor:
    return chosen.nonzero()[:, 0]


def at_equal_steps(rows: Tensor, most: int) -> Tensor:
    """At most so many of the rows "n", at equal steps."""
    step = -(-len(rows) // most)
    return rows[:: max(1, step)]
