"""Point groups: the laws of a group, the axes that are promised, and RELION's own operators."""

import math
import re
import shutil
import subprocess

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from instamap.errors import OptionError
from instamap.geometry.symmetry import canonical, point_group

ORDERS = {
    "C1": 1,
    "C2": 2,
    "C7": 7,
    "D1": 2,
    "D2": 4,
    "D5": 10,
    "T": 12,
    "O": 24,
    "I": 60,
    "I1": 60,
    "I2": 60,
    "I3": 60,
    "I4": 60,
}
EXACT = 1e-12  # float64 with a dozen products
WRITTEN = 1e-4  # RELION prints five or six digits, of axes that it knows to six or seven
names = st.one_of(
    st.sampled_from(sorted(ORDERS)),
    st.builds("{}{}".format, st.sampled_from("CD"), st.integers(1, 20)),
)


def distances(one, other):
    """Of each rotation of one set from each of another, "A B"."""
    return (one[:, None] - other).abs().amax((-1, -2))


@pytest.mark.parametrize(("name", "order"), ORDERS.items())
def test_groups_have_their_order(name, order):
    assert point_group(name).shape == (order, 3, 3)


@given(names)
def test_groups_are_groups_of_rotations(name):
    group = point_group(name)
    torch.testing.assert_close(group[0], torch.eye(3, dtype=torch.float64), rtol=0, atol=EXACT)
    torch.testing.assert_close(
        group @ group.mT, torch.eye(3, dtype=torch.float64).expand_as(group), rtol=0, atol=EXACT
    )
    torch.testing.assert_close(
        torch.linalg.det(group), torch.ones(len(group), dtype=torch.float64), rtol=0, atol=EXACT
    )
    products = (group[:, None] @ group).flatten(0, 1)
    assert distances(products, group).amin(1).max() < EXACT  # closed, and so with inverses
    apart = distances(group, group) + torch.eye(len(group))
    assert apart.min() > 0.1  # each rotation once


@pytest.mark.parametrize(
    ("name", "axis", "order"),
    [
        ("C5", (0, 0, 1), 5),
        ("D3", (0, 0, 1), 3),
        ("D3", (1, 0, 0), 2),
        ("T", (0, 0, 1), 3),
        ("O", (0, 0, 1), 4),
        ("O", (1, 0, 0), 4),
        ("I1", (0, 0, 1), 2),
        ("I1", (0, 1, 0), 2),
        ("I2", (1, 0, 0), 2),
        ("I2", (0, 0, 1), 2),
        ("I3", (0, 0, 1), 5),
        ("I4", (0, 0, 1), 5),
    ],
)
def test_promised_axes(name, axis, order):
    group = point_group(name)
    axis = torch.tensor(axis, dtype=torch.float64)
    about = group[((group @ axis) - axis).norm(dim=-1) < EXACT * 100]
    assert len(about) == order
    angles = torch.arccos(((torch.diagonal(about, dim1=1, dim2=2).sum(1) - 1) / 2).clamp(-1, 1))
    assert angles[1:].min() == pytest.approx(2 * math.pi / order)


@pytest.mark.parametrize(
    "name", ["C", "C0", "D0", "C-4", "C1000", "X", "", "T1", "I5", "O2", "4", "C4.5", "C4 D2"]
)
def test_unknown_names_are_refused_with_what_is_allowed(name):
    with pytest.raises(
        OptionError, match=re.escape(f"symmetry '{name}' is unknown; choose Cn or Dn")
    ):
        point_group(name)


def test_names_have_one_spelling():
    assert [canonical(n) for n in ("c4", " C04 ", "I", "i2", "d12", "o")] == [
        "C4",
        "C4",
        "I2",
        "I2",
        "D12",
        "O",
    ]


@pytest.mark.skipif(
    shutil.which("relion_refine") is None, reason="RELION (Debian package relion) is not installed"
)
@pytest.mark.parametrize(
    "name",
    ["C1", "C2", "C3", "C11", "D1", "D2", "D3", "D4", "D7", "T", "O", "I", "I1", "I2", "I3", "I4"],
)
def test_operators_are_those_of_relion(name):
    done = subprocess.run(
        ["relion_refine", "--sym", name, "--print_symmetry_ops"], capture_output=True, text=True
    )
    lines = done.stdout.splitlines()
    starts = [i for i, line in enumerate(lines) if line.strip().startswith("R(")]
    theirs = torch.tensor(
        [[[float(v) for v in row.split()] for row in lines[i + 1 : i + 4]] for i in starts],
        dtype=torch.float64,
    )
    ours = point_group(name)
    assert len(theirs) == len(ours)
    apart = distances(ours, theirs)
    assert max(apart.amin(0).max(), apart.amin(1).max()) < WRITTEN
