"""The FSC equals its definition, its numbers are read off where they should be, and the correction removes what the mask adds."""

import csv
import math

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from instamap.errors import DataError, OutputError
from instamap.geometry import grids
from instamap.maps import fsc

seeds = st.integers(0, 2**32)
PNG = b"\x89PNG\r\n\x1a\n"


def noise(box: int, seed: int) -> torch.Tensor:
    return torch.randn(box, box, box, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def filtered(map: torch.Tensor, keep) -> torch.Tensor:
    """The map with only those Fourier components whose shell satisfies `keep`."""
    return torch.fft.ifftn(torch.fft.fftn(map) * keep(grids.shells(len(map), 3))).real


@given(box=st.integers(3, 12), seed=seeds, share=st.floats(-1, 1))
def test_it_is_the_definition(box, seed, share):
    a = noise(box, seed)
    b = share * a + noise(box, seed + 1)
    shells, fa, fb = grids.shells(box, 3), torch.fft.fftn(a), torch.fft.fftn(b)
    for shell, value in enumerate(fsc.fsc(a, b)):
        x, y = fa[shells == shell], fb[shells == shell]
        expected = (x * y.conj()).sum().real / (x.abs().square().sum() * y.abs().square().sum()).sqrt()
        assert value == pytest.approx(float(expected), abs=1e-10)  # two orders of summation in float64
    assert shell == box // 2


@given(box=st.integers(4, 12), seed=seeds, factor=st.floats(1e-6, 1e6))
def test_scale_sign_and_order(box, seed, factor):
    a, b = noise(box, seed), noise(box, seed + 1)
    curve = fsc.fsc(a, b)
    assert torch.allclose(fsc.fsc(a, a), torch.ones_like(curve), atol=1e-12)
    assert torch.allclose(fsc.fsc(a, -factor * b), -curve, atol=1e-10)
    assert torch.allclose(fsc.fsc(b, a), curve, atol=1e-12)
    assert torch.allclose(fsc.fsc(a.roll((1, 2, 3), (0, 1, 2)), b.roll((1, 2, 3), (0, 1, 2))), curve, atol=1e-10), "a common shift"


def test_a_mask_is_applied_to_both():
    a, b, mask = noise(8, 0), noise(8, 1), noise(8, 2).abs()
    assert torch.equal(fsc.fsc(a, b, mask), fsc.fsc(a * mask, b * mask))
    assert fsc.fsc(a.float(), b.float(), mask).dtype == torch.float64


def test_equal_signal_and_noise_correlate_by_half():
    signal = noise(32, 0)
    curve = fsc.fsc(signal + noise(32, 1), signal + noise(32, 2))
    for shell in range(4, 17):
        count = 2 * math.pi * shell**2  # independent components of a shell
        assert curve[shell] == pytest.approx(0.5, abs=5 / math.sqrt(count))  # standard deviation below 1/√count


@pytest.mark.parametrize("box", [16, 17])
def test_shells_without_power_have_zero(box):
    low = filtered(noise(box, 0), lambda shell: shell < 4)
    curve = fsc.fsc(low, low)
    assert torch.allclose(curve[:4], torch.ones(4, dtype=curve.dtype)) and not curve[4:].any()
    constant = torch.full((box, box, box), 1e8)
    assert fsc.fsc(constant, constant).tolist() == [1.0] + [0.0] * (box // 2)
    assert not fsc.fsc(constant, torch.zeros_like(constant)).any()


@given(falls=st.floats(1.0, 15.99), threshold=st.sampled_from(fsc.THRESHOLDS), pixel_size=st.floats(0.5, 5))
def test_the_resolution_is_where_a_straight_line_crosses(falls, threshold, pixel_size):
    curve = threshold + 0.01 * (falls - torch.arange(17, dtype=torch.float64))
    assume(math.ceil(falls) > 1)
    assert fsc.resolution(curve, 32, pixel_size, threshold) == pytest.approx(32 * pixel_size / falls, rel=1e-9)


def test_the_resolution_at_the_ends_and_of_a_bump():
    assert fsc.resolution(torch.ones(17), 32, 1.5, 0.143) == pytest.approx(3.0), "Nyquist"
    assert fsc.resolution(torch.tensor([1.0, 0.1, 0.9, 0.0]), 6, 2.0, 0.143) == 12.0, "below at the first shell"
    assert fsc.resolution(torch.tensor([0.0, 1.0, 1.0, 0.0, 1.0]), 8, 1.0, 0.5) == pytest.approx(8 / 2.5), "shell 0 does not count"
    assert math.isnan(fsc.resolution(torch.tensor([1.0, 1.0, math.nan, 1.0]), 6, 1.0, 0.5)), "not a number is not a resolution"


def test_auc_leaves_out_shell_zero():
    assert fsc.auc(torch.tensor([5.0, 1.0, 0.5, 0.0])) == 0.5


@given(box=st.integers(6, 13), seed=seeds, shell=st.integers(1, 3))
def test_random_phases_keep_amplitudes_and_low_shells(box, seed, shell):
    map = noise(box, seed)
    mixed = fsc._randomise(map, shell, torch.Generator().manual_seed(seed + 1))
    before, after, shells = torch.fft.fftn(map), torch.fft.fftn(mixed), grids.shells(box, 3)
    assert torch.allclose(before.abs(), after.abs(), atol=1e-10)
    assert torch.allclose(before[shells < shell], after[shells < shell], atol=1e-10)
    assert not torch.allclose(before[shells >= shell], after[shells >= shell], atol=1e-3)


def test_the_correction_takes_away_what_a_hard_mask_adds():
    """Two maps that share nothing beyond shell 6, cut out by the same sharp edge, which they then share at every shell."""
    solid = 3.0 * (grids.voxel_centres(32, 1.0).norm(dim=-1) < 11).double()
    common = filtered(solid, lambda shell: shell < 6)
    a, b = (common + filtered(0.3 * noise(32, seed), lambda shell: shell >= 6) for seed in (1, 2))
    mask = (grids.voxel_centres(32, 1.0).norm(dim=-1) < 7).double()
    masked, corrected = fsc.fsc(a, b, mask), fsc.phase_randomised(a, b, mask, generator=torch.Generator().manual_seed(0))
    assert masked[8:].mean() > 0.3, "the mask must do harm for this test to mean anything"
    assert abs(corrected[8:].mean()) < 0.1  # about 13,000 masked components: a mean of ten shells scatters by about 0.03
    assert torch.equal(corrected[:8], masked[:8]), "untouched below shell 6 + 2"
    again = fsc.phase_randomised(a, b, mask, 6, torch.Generator().manual_seed(0))
    assert torch.equal(again, corrected), "the shell is found, and the generator decides"


def test_the_correction_leaves_true_agreement_alone():
    a, mask = noise(16, 0), (grids.voxel_centres(16, 1.0).norm(dim=-1) < 6).double()
    assert torch.allclose(fsc.phase_randomised(a, a, mask, 3, torch.Generator().manual_seed(0)), torch.ones(9).double(), atol=1e-9)
    assert torch.equal(fsc.phase_randomised(a, a, mask), fsc.fsc(a, a, mask)), "never below 0.8: nothing to randomise"


def test_the_table(tmp_path):
    fsc.write_csv(tmp_path / "fsc.csv", {"one": torch.tensor([1.0, 0.5, 0.25]), "two": torch.tensor([1.0, 0.0, -0.5])}, 4, 2.0)
    with (tmp_path / "fsc.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["shell", "spatial_frequency", "resolution", "one", "two"]
    assert [[float(v) for v in row.values()] for row in rows] == [
        [0, 0, math.inf, 1, 1], [1, 0.125, 8, 0.5, 0], [2, 0.25, 4, 0.25, -0.5]]  # fmt: skip


def test_the_picture(tmp_path):
    fsc.plot(tmp_path / "fsc.png", {"half maps": torch.linspace(1, -0.1, 17), "nothing": torch.zeros(17)}, 32, 1.5)
    assert (tmp_path / "fsc.png").read_bytes().startswith(PNG) and len(list(tmp_path.iterdir())) == 1
    with pytest.raises(OutputError, match="no-such-folder"):
        fsc.plot(tmp_path / "no-such-folder" / "fsc.png", {"a": torch.zeros(17)}, 32, 1.5)


def test_maps_of_different_frames_are_refused():
    one = torch.zeros(4, 4, 4)
    fsc.same_frame((one, 1.0), (one, 1.005), ("a", "b"))
    with pytest.raises(DataError, match="'a' has a box of 4, 'b' of 6"):
        fsc.same_frame((one, 1.0), (torch.zeros(6, 6, 6), 1.0), ("a", "b"))
    with pytest.raises(DataError, match="'a' has pixels of 1 Å, 'b' of 1.1 Å"):
        fsc.same_frame((one, 1.0), (one, 1.1), ("a", "b"))
