"""The FSC equals its definition, its numbers are read off where they should be, and what mask,
level or prior add to it is taken away.
"""

import csv
import math

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from instamap.errors import DataError
from instamap.geometry import grids
from instamap.maps import fsc
from instamap.maps import mask as masks

seeds = st.integers(0, 2**32)


def noise(box: int, seed: int) -> torch.Tensor:
    return torch.randn(
        box, box, box, generator=torch.Generator().manual_seed(seed), dtype=torch.float64
    )


def filtered(map: torch.Tensor, keep) -> torch.Tensor:
    """The map with only those Fourier components whose shell satisfies `keep`."""
    return torch.fft.ifftn(torch.fft.fftn(map) * keep(grids.shells(len(map), 3))).real


@given(box=st.integers(3, 12), seed=seeds, share=st.floats(-1, 1))
def test_it_is_the_definition(box, seed, share):
    a = noise(box, seed)
    b = share * a + noise(box, seed + 1)
    shells = grids.shells(box, 3)
    fa = torch.fft.fftn(a)
    fb = torch.fft.fftn(b)
    for shell, value in enumerate(fsc.fsc(a, b)):
        x = fa[shells == shell]
        y = fb[shells == shell]
        expected = (x * y.conj()).sum().real / (
            x.abs().square().sum() * y.abs().square().sum()
        ).sqrt()
        assert value == pytest.approx(
            float(expected), abs=1e-10
        )  # two orders of summation in float64
    assert shell == box // 2


@given(box=st.integers(4, 12), seed=seeds, factor=st.floats(1e-6, 1e6))
def test_scale_sign_and_order(box, seed, factor):
    a = noise(box, seed)
    b = noise(box, seed + 1)
    curve = fsc.fsc(a, b)
    assert torch.allclose(fsc.fsc(a, a), torch.ones_like(curve), atol=1e-12)
    assert torch.allclose(fsc.fsc(a, -factor * b), -curve, atol=1e-10)
    assert torch.allclose(fsc.fsc(b, a), curve, atol=1e-12)
    assert torch.allclose(
        fsc.fsc(a.roll((1, 2, 3), (0, 1, 2)), b.roll((1, 2, 3), (0, 1, 2))), curve, atol=1e-10
    ), "a common shift"


def test_a_mask_is_applied_to_both():
    a = noise(8, 0)
    b = noise(8, 1)
    mask = noise(8, 2).abs()
    assert torch.equal(fsc.fsc(a, b, mask), fsc.fsc(a * mask, b * mask))
    assert fsc.fsc(a.float(), b.float(), mask).dtype == torch.float64


def test_equal_signal_and_noise_correlate_by_half():
    signal = noise(32, 0)
    curve = fsc.fsc(signal + noise(32, 1), signal + noise(32, 2))
    for shell in range(4, 17):
        count = 2 * math.pi * shell**2  # independent components of a shell
        assert curve[shell] == pytest.approx(
            0.5, abs=5 / math.sqrt(count)
        )  # standard deviation below 1/√count


@pytest.mark.parametrize("box", [16, 17])
def test_shells_without_power_have_zero(box):
    low = filtered(noise(box, 0), lambda shell: shell < 4)
    curve = fsc.fsc(low, low)
    assert torch.allclose(curve[:4], torch.ones(4, dtype=curve.dtype)) and not curve[4:].any()
    constant = torch.full((box, box, box), 1e8)
    assert fsc.fsc(constant, constant).tolist() == [1.0] + [0.0] * (box // 2)
    assert not fsc.fsc(constant, torch.zeros_like(constant)).any()


@given(
    falls=st.floats(1.0, 15.99),
    threshold=st.sampled_from(fsc.RESOLUTION_THRESHOLDS),
    pixel_size=st.floats(0.5, 5),
)
def test_the_resolution_is_where_a_straight_line_crosses(falls, threshold, pixel_size):
    curve = threshold + 0.01 * (falls - torch.arange(17, dtype=torch.float64))
    assume(math.ceil(falls) > 1)
    assert fsc.resolution(curve, 32, pixel_size, threshold) == pytest.approx(
        32 * pixel_size / falls, rel=1e-9
    )


def test_the_resolution_at_the_ends_and_of_a_bump():
    assert fsc.resolution(torch.ones(17), 32, 1.5, 0.143) == pytest.approx(3.0), "Nyquist"
    assert fsc.resolution(torch.tensor([1.0, 0.1, 0.9, 0.0]), 6, 2.0, 0.143) == 12.0, (
        "below at the first shell"
    )
    assert fsc.resolution(torch.tensor([0.0, 1.0, 1.0, 0.0, 1.0]), 8, 1.0, 0.5) == pytest.approx(
        8 / 2.5
    ), "shell 0 does not count"
    assert math.isnan(fsc.resolution(torch.tensor([1.0, 1.0, math.nan, 1.0]), 6, 1.0, 0.5)), (
        "not a number is not a resolution"
    )


def test_auc_leaves_out_shell_zero():
    assert fsc.auc(torch.tensor([5.0, 1.0, 0.5, 0.0])) == 0.5


@given(box=st.integers(6, 13), seed=seeds, shell=st.integers(1, 3))
def test_random_phases_keep_amplitudes_and_low_shells(box, seed, shell):
    map = noise(box, seed)
    mixed = fsc._randomise(map, shell, torch.Generator().manual_seed(seed + 1))
    before = torch.fft.fftn(map)
    after = torch.fft.fftn(mixed)
    shells = grids.shells(box, 3)
    assert torch.allclose(before.abs(), after.abs(), atol=1e-10)
    assert torch.allclose(before[shells < shell], after[shells < shell], atol=1e-10)
    assert not torch.allclose(before[shells >= shell], after[shells >= shell], atol=1e-3)


def test_the_correction_takes_away_what_a_hard_mask_adds():
    """Two maps that share nothing beyond shell 6, cut out by the same sharp edge, which they then
    share at every shell.
    """
    centres = grids.voxel_centres(32, 1.0)
    solid = centres[..., 0] * (
        centres.norm(dim=-1) < 11
    )  # as much on both sides: no level to be taken off
    common = filtered(solid, lambda shell: shell < 6)
    a, b = (common + filtered(0.3 * noise(32, seed), lambda shell: shell >= 6) for seed in (1, 2))
    mask = (grids.voxel_centres(32, 1.0).norm(dim=-1) < 7).double()
    masked = fsc.fsc(fsc.levelled(a, mask), fsc.levelled(b, mask))
    corrected = fsc.phase_randomised(a, b, mask, generator=torch.Generator().manual_seed(0))
    assert masked[8:].mean() > 0.3, "the mask must do harm for this test to mean anything"
    assert (
        abs(corrected[8:].mean()) < 0.1
    )  # about 13,000 masked components: a mean of ten shells scatters by about 0.03
    assert torch.equal(corrected[:8], masked[:8]), "untouched below shell 6 + 2"
    again = fsc.phase_randomised(a, b, mask, 6, torch.Generator().manual_seed(0))
    assert torch.equal(again, corrected), "the shell is found, and the generator decides"


def test_the_correction_leaves_true_agreement_alone():
    a = noise(16, 0)
    mask = (grids.voxel_centres(16, 1.0).norm(dim=-1) < 6).double()
    assert torch.allclose(
        fsc.phase_randomised(a, a, mask, 3, torch.Generator().manual_seed(0)),
        torch.ones(9).double(),
        atol=1e-9,
    )
    alike = fsc.phase_randomised(a, a, mask)
    assert torch.equal(alike, fsc.fsc(fsc.levelled(a, mask), fsc.levelled(a, mask))), (
        "never below 0.8: nothing to randomise"
    )


# The level of a map


def ball(box: int, radius: float, edge: float) -> torch.Tensor:
    return masks.sphere(box, 1.0, radius, edge).double()


@given(seed=seeds, level=st.floats(-100, 100), edge=st.sampled_from([0.0, 2.0, 4.0]))
def test_a_level_inside_the_mask_does_not_count(seed, level, edge):
    """Of fields, which are zero outside it, as of maps that have the level everywhere."""
    mask = ball(12, 5.0, edge)
    field = noise(12, seed)
    for before, after in ((mask * field, mask * (field + level)), (field, field + level)):
        assert torch.allclose(
            fsc.levelled(before, mask), fsc.levelled(after, mask), atol=1e-9 * (1 + abs(level))
        )
    smallest = 1e-300  # numbers below have too few digits for a ratio
    assert fsc.levelled(level * mask, mask).abs().max() <= 1e-12 * abs(level) + smallest


def test_a_mask_without_edge_takes_the_mean():
    assert torch.allclose(
        fsc.levelled(noise(6, 0), torch.ones(6, 6, 6)), noise(6, 0) - noise(6, 0).mean(), atol=1e-12
    )


def test_fields_of_nothing_with_a_common_level_do_not_agree():
    """Smooth noise in a soft mask, ten pairs: without levelling their mean FSC is above 0.5."""
    mask = ball(24, 10.0, 3.0)
    found = []
    before = []
    for seed in range(10):
        one, two = (
            mask * (3.0 + filtered(noise(24, 2 * seed + i), lambda shell: shell < 8))
            for i in (0, 1)
        )
        found.append(fsc.fsc(fsc.levelled(one, mask), fsc.levelled(two, mask))[3:])
        before.append(fsc.fsc(one, two)[3:])
    assert torch.stack(before).mean() > 0.5
    assert abs(torch.stack(found).mean()) < 0.05  # ten shells of ten pairs, each of 0.1 or so


def test_the_level_adds_no_step_that_both_halves_share():
    """A molecule brighter than its surroundings that ends at shell 6, with noise: beyond, nothing
    is gained by levelling.
    """
    mask = ball(32, 13.0, 2.0)
    molecule = filtered(20.0 * ball(32, 7.0, 0.0), lambda shell: shell < 6)
    one, two = (mask * (molecule + 0.5 * noise(32, seed)) for seed in (0, 1))
    without = fsc.fsc(one, two)
    found = fsc.fsc(fsc.levelled(one, mask), fsc.levelled(two, mask))

    def mean(map):
        return map - mask * (map * mask).sum() / mask.square().sum()

    assert (
        found[9:].mean() < without[9:].mean() + 0.02
        and fsc.fsc(mean(one), mean(two))[9:].mean() > found[9:].mean() + 0.1
    )


# Half maps against direct inversions


def halves(seed: int, *, box: int = 32, follow: float = 0.5) -> tuple:
    """one, two, raw_one, raw_two, mask, and c_ht² and c_rt² by shell: truth of power 9 times
    falling amplitudes, plus noise of 1.

    A half map has a share of its own inversion's noise, as a fit does, and some of its own.
    """
    mask = ball(box, 0.45 * box, 4.0)

    def fall(scale):
        return lambda shell: torch.exp(-((shell / (scale * box)) ** 2))

    truth = 3 * filtered(noise(box, seed), fall(0.3))
    raw = []
    fits = []
    for i in (1, 2):
        own = noise(box, seed + i)
        raw.append(mask * (truth + own))
        fits.append(
            mask * (truth + follow * filtered(own, fall(0.4)) + 0.1 * noise(box, seed + 2 + i))
        )
    shell = torch.arange(box // 2 + 1).double()
    power = 9 * fall(0.3)(shell) ** 2
    ours = power / (power + follow**2 * fall(0.4)(shell) ** 2 + 0.01)
    return (*fits, *raw, mask), ours, power / (power + 1)


@pytest.mark.parametrize("seed", [0, 100, 200])
def test_the_ratio_is_what_half_maps_owe_to_the_truth(seed):
    """Closed form: power of the truth over that of the half map. Errors of cross and direct add as
    relative ones.
    """
    given, ours, theirs = halves(seed)
    found = fsc.cross(*given)
    count = fsc.independent_components(given[-1])
    for shell in range(4, 14):
        near = slice(shell - 1, shell + 2)
        error = 1 / math.sqrt(float(count[near].sum()))
        assert found["direct"][near].mean() == pytest.approx(
            float(theirs[shell]), abs=4 * error + 0.02
        )  # 0.02: the mask mixes shells
        relative = (
            4 / float((ours * theirs)[shell]) ** 2 * 0.5 + 1 / float(theirs[shell]) ** 2
        ) ** 0.5 * error
        assert found["unbiased"][shell] == pytest.approx(
            float(ours[shell]), abs=3 * relative * float(ours[shell]) + 0.03
        ), shell
    assert ((found["unbiased"] >= 0) & (found["unbiased"] <= 1)).all()


def test_what_a_prior_puts_into_both_halves_counts_for_nothing():
    (one, two, raw_one, raw_two, mask), ours, _ = halves(7)
    fake = mask * filtered(noise(32, 99), lambda shell: (shell > 6) & (shell < 12)) * 5.0
    honest = fsc.cross(one, two, raw_one, raw_two, mask)
    found = fsc.cross(one + fake, two + fake, raw_one, raw_two, mask)
    assert (fsc.fsc(one + fake, two + fake)[8:11] > fsc.fsc(one, two)[8:11] + 0.03).all()
    assert (honest["unbiased"][8:11] > 0.7).all()
    assert (found["unbiased"][8:11] < 0.4 * honest["unbiased"][8:11]).all(), (
        "a half map of mostly fake structure is a worse one"
    )
    assert torch.equal(found["direct"], honest["direct"])


@pytest.mark.parametrize("seed", range(8))
def test_of_noise_the_data_cannot_tell(seed):
    """Fits that share a prior's structure and follow their noise: at three standard deviations, one
    shell in 740 passes.
    """
    mask = ball(24, 10.0, 3.0)
    raw = [mask * noise(24, 10 * seed + i) for i in (0, 1)]
    fake = mask * noise(24, 10 * seed + 2)
    curves = fsc.cross(raw[0] + 3 * fake, raw[1] + 3 * fake, *raw, mask)
    assert (
        not curves["unbiased"].any() and fsc.resolution(curves["unbiased"], 24, 2.0, 0.143) == 48.0
    )
    count = fsc.independent_components(mask)
    for name, curve in list(curves.items())[:2]:
        assert (curve[3:].abs() < 4.5 / count[3:].sqrt()).all(), name
    assert fsc.fsc(raw[0] + 3 * fake, raw[1] + 3 * fake)[3:].min() > 0.8


def test_anticorrelation_is_no_agreement_and_shells_after_the_first_unknown_one_are_unknown():
    (one, two, raw_one, raw_two, mask), _, _ = halves(3)
    assert not fsc.cross(-one, -two, raw_one, raw_two, mask)["unbiased"].any()

    def lost(shell):
        return (shell > 6) & (shell < 11)

    def gap(map, seed):
        return map - filtered(map, lost) + filtered(noise(32, seed), lost)

    curve = fsc.cross(one, two, gap(raw_one, 50), gap(raw_two, 51), mask)["unbiased"]
    assert (curve[1:5] > 0.5).all() and not curve[9:].any()


def test_empty_maps_have_no_agreement():
    (one, two, raw_one, raw_two, mask), _, _ = halves(3)
    assert not any(
        fsc.cross(0 * one, 0 * two, raw_one, raw_two, mask)[name].any()
        for name in ("cross", "unbiased")
    )
    assert not fsc.cross(one, two, 0 * raw_one, 0 * raw_two, mask)["unbiased"].any()


@given(radius=st.floats(4, 11), seed=seeds)
@settings(max_examples=5)
def test_the_fsc_of_nothing_scatters_by_the_number_of_independent_components(radius, seed):
    mask = ball(24, radius, 2.0)
    curves = torch.stack(
        [
            fsc.fsc(mask * noise(24, seed + 2 * i), mask * noise(24, seed + 2 * i + 1))[4:12]
            for i in range(80)
        ]
    )
    ratio = (curves.square() * fsc.independent_components(mask)[4:12]).mean()
    assert (
        0.6 < ratio < 1.5
        # 640 numbers, neighbours of which are alike (σ of the mean 0.08); one shell holds the
        # mask's cells a bit better than in the mean
    )


def test_the_table(tmp_path):
    fsc.write_csv(
        tmp_path / "fsc.csv",
        {"one": torch.tensor([1.0, 0.5, 0.25]), "two": torch.tensor([1.0, 0.0, -0.5])},
        4,
        2.0,
    )
    with (tmp_path / "fsc.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["shell", "spatial_frequency", "resolution", "one", "two"]
    assert [[float(v) for v in row.values()] for row in rows] == [
        [0, 0, math.inf, 1, 1],
        [1, 0.125, 8, 0.5, 0],
        [2, 0.25, 4, 0.25, -0.5],
    ]


def test_maps_of_different_frames_are_refused():
    one = torch.zeros(4, 4, 4)
    fsc.same_frame((one, 1.0), (one, 1.005), ("a", "b"))
    with pytest.raises(DataError, match="'a' has a box of 4, 'b' of 6"):
        fsc.same_frame((one, 1.0), (torch.zeros(6, 6, 6), 1.0), ("a", "b"))
    with pytest.raises(DataError, match="'a' has pixels of 1 Å, 'b' of 1.1 Å"):
        fsc.same_frame((one, 1.0), (one, 1.1), ("a", "b"))
