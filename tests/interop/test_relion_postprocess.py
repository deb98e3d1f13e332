"""Postprocessing and masks held against relion_postprocess and relion_mask_create on the same
files.
"""

import math
import shutil
import subprocess

import pytest
import starfile
import torch
from support.command import instamap
from support.half_maps import halves, particle

from instamap.maps import mask, mrc

pytestmark = pytest.mark.skipif(
    shutil.which("relion_postprocess") is None,
    reason="RELION (Debian package relion) is not installed",
)

BOX = 64
PIXEL = 1.5
FIT = (10.0, 4.5)  # Å, between which both fit the line of the Guinier plot
SHELLS = slice(1, BOX // 2)


def relion(folder, program, *words) -> None:
    """Runs a program of RELION; relion_postprocess fails after its maps where it cannot plot."""
    command = [program, *map(str, words)]
    subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Half maps, a mask, and what both programs make of them in relion/ and instamap/."""
    path = tmp_path_factory.mktemp("relion")
    truth = particle(BOX, PIXEL, 150.0)
    one, other = halves(truth, 1.5 * float(truth.std()))
    mrc.write(path / "run_half1_class001_unfil.mrc", one, PIXEL)
    mrc.write(path / "run_half2_class001_unfil.mrc", other, PIXEL)
    mrc.write(path / "truth.mrc", truth, PIXEL)
    mrc.write(path / "mask.mrc", mask.from_map((one + other).float() / 2, PIXEL), PIXEL)
    (path / "relion").mkdir()
    names = ("run_half1_class001_unfil.mrc", "run_half2_class001_unfil.mrc")
    words = ["--i", names[0], "--i2", names[1], "--angpix", PIXEL, "--mask", "mask.mrc"]
    words += ["--auto_bfac", "--autob_lowres", FIT[0], "--autob_highres", FIT[1]]
    relion(path, "relion_postprocess", *words, "--o", "relion/postprocess")
    flags = ["--mask", path / "mask.mrc", "--fit-from", FIT[0], "--fit-to", FIT[1]]
    inputs = [path / name for name in names]
    done = instamap("postprocess", *inputs, *flags, "-o", path / "instamap")
    assert done.code == 0, done
    return path


@pytest.fixture(scope="module")
def stars(folder):
    """postprocess.star of RELION and ours."""
    names = ("relion", "instamap")
    return [starfile.read(folder / name / "postprocess.star") for name in names]


def test_the_tables_have_the_same_columns(stars):
    theirs, ours = stars
    assert list(theirs) == list(ours)
    for name in ("fsc", "guinier"):
        assert list(theirs[name].columns) == list(ours[name].columns)
        assert len(theirs[name]) == len(ours[name])
    assert set(theirs["general"]) == set(ours["general"])


@pytest.mark.parametrize(
    ("column", "tolerance"),
    [
        # components of the plane x = 0 count twice in RELION's sums, once in ours
        ("rlnFourierShellCorrelationUnmaskedMaps", 0.01),
        ("rlnFourierShellCorrelationParticleMaskFraction", 0.02),
        # RELION leaves maps their level at the mask's edge
        ("rlnFourierShellCorrelationMaskedMaps", 0.02),
        # random phases differ: their FSC scatters by 0.03 in such a mask
        ("rlnFourierShellCorrelationCorrected", 0.1),
    ],
)
def test_curves_are_those_of_relion(stars, column, tolerance):
    theirs, ours = (table["fsc"][column].to_numpy(float)[SHELLS] for table in stars)
    assert abs(theirs - ours).max() < tolerance


def test_numbers_are_those_of_relion(stars):
    theirs, ours = (table["general"] for table in stars)
    same = "rlnParticleBoxFractionSolventMask"
    assert ours[same] == pytest.approx(theirs[same], rel=1e-5)
    # a shell, by which random phases may move it
    frequency = [BOX * PIXEL / table["rlnFinalResolution"] for table in (theirs, ours)]
    assert abs(frequency[0] - frequency[1]) < 1.01
    assert ours["rlnRandomiseFrom"] == pytest.approx(theirs["rlnRandomiseFrom"], rel=1e-5)
    slope = "rlnFittedSlopeGuinierPlot"
    assert ours[slope] == pytest.approx(theirs[slope], rel=0.1)
    b_factor = "rlnBfactorUsedForSharpening"
    assert ours[b_factor] == pytest.approx(theirs[b_factor], rel=0.1)


def test_amplitudes_are_those_of_relion(stars):
    theirs, ours = (table["guinier"]["rlnLogAmplitudesOriginal"].to_numpy(float) for table in stars)
    # of the first shells' few components those that RELION counts twice are a large part
    assert abs(theirs - ours)[6:].max() < 0.03


@pytest.mark.parametrize("name", ["postprocess", "postprocess_masked"])
def test_maps_are_those_of_relion(folder, name):
    theirs = mrc.read(folder / "relion" / f"{name}.mrc")[0].flatten()
    ours = mrc.read(folder / "instamap" / f"{name}.mrc")[0].flatten()
    assert float(torch.corrcoef(torch.stack([theirs, ours]))[0, 1]) > 0.99
    assert float(ours.std() / theirs.std()) == pytest.approx(1, abs=0.1)


def test_maps_of_the_same_b_factor_are_those_of_relion(folder, tmp_path):
    """Without a mask nothing is random, and maps are the same up to the sums of the FSC."""
    names = ("run_half1_class001_unfil.mrc", "run_half2_class001_unfil.mrc")
    (tmp_path / "relion").mkdir()
    inputs = [folder / name for name in names]
    words = ["--i", inputs[0], "--i2", inputs[1], "--angpix", PIXEL]
    words += ["--adhoc_bfac", -90, "--low_pass", 5]
    relion(tmp_path, "relion_postprocess", *words, "--o", "relion/postprocess")
    flags = ("--b-factor", -90, "--low-pass", 5, "--no-local", "-o", tmp_path / "ours")
    assert instamap("postprocess", *inputs, *flags).code == 0
    theirs = mrc.read(tmp_path / "relion" / "postprocess.mrc")[0].flatten()
    ours = mrc.read(tmp_path / "ours" / "postprocess.mrc")[0].flatten()
    assert float((theirs - ours).std() / theirs.std()) < 0.01


@pytest.mark.parametrize("angpix", [None, 0.75])
def test_a_detector_is_taken_off_as_relion_does(folder, tmp_path, angpix):
    """The curve falls to half at Nyquist; RELION's steps of it are off by one row in a hundred."""
    rows = [f"{x / 200:.6f} {math.exp(-x / 144):.6f}" for x in range(101)]
    head = ["data_", "loop_", "_rlnResolutionInversePixel #1", "_rlnMtfValue #2"]
    (tmp_path / "mtf.star").write_text("\n".join([*head, *rows, ""]))
    names = ("run_half1_class001_unfil.mrc", "run_half2_class001_unfil.mrc")
    inputs = [folder / name for name in names]
    (tmp_path / "relion").mkdir()
    curve = ["--mtf", tmp_path / "mtf.star"]
    if angpix is not None:
        curve += ["--mtf_angpix", angpix]
    words = ["--i", inputs[0], "--i2", inputs[1], "--angpix", PIXEL, "--mask", folder / "mask.mrc"]
    words += ["--adhoc_bfac", -90, "--low_pass", 5]
    relion(tmp_path, "relion_postprocess", *words, *curve, "--o", "relion/postprocess")
    flags = ["--b-factor", -90, "--low-pass", 5, "--no-local", "--mask", folder / "mask.mrc"]
    done = instamap("postprocess", *inputs, *flags, *curve, "-o", tmp_path / "ours")
    assert done.code == 0, done
    theirs, ours = (
        starfile.read(tmp_path / name / "postprocess.star")["guinier"]
        for name in ("relion", "ours")
    )
    assert list(theirs.columns) == list(ours.columns)
    gain = {}
    for name, table in (("theirs", theirs), ("ours", ours)):
        before = table["rlnLogAmplitudesOriginal"].to_numpy(float)
        after = table["rlnLogAmplitudesMTFCorrected"].to_numpy(float)
        gain[name] = (after - before)[SHELLS]
    assert abs(gain["theirs"] - gain["ours"]).max() < 0.005
    assert gain["ours"].max() > 0.2, "the curve is felt"
    theirs, ours = (
        mrc.read(tmp_path / name / "postprocess.mrc")[0].flatten() for name in ("relion", "ours")
    )
    assert float((theirs - ours).std() / theirs.std()) < 0.02


def test_local_resolution_is_near_that_of_relion(folder):
    """RELION's windows are as wide as ours here, but of another shape and with other thresholds."""
    words = ["--locres", "--locres_sampling", 12, "--locres_maskrad", 8, "--locres_edgwidth", 20]
    names = ("run_half1_class001_unfil.mrc", "run_half2_class001_unfil.mrc")
    words += ["--i", names[0], "--i2", names[1], "--angpix", PIXEL]
    relion(folder, "relion_postprocess", *words, "--o", "relion/local")
    inside = mrc.read(folder / "mask.mrc")[0] > 0.9
    theirs = mrc.read(folder / "relion" / "local_locres.mrc")[0][inside]
    ours = mrc.read(folder / "instamap" / "postprocess_locres.mrc")[0][inside]
    assert float(ours.median()) == pytest.approx(float(theirs.median()), rel=0.12)
    stacked = torch.stack([theirs, ours])
    assert float(torch.corrcoef(stacked)[0, 1]) > 0.7


@pytest.mark.parametrize(
    ("extend", "edge", "low_pass"), [(0, 0, None), (3, 6, None), (2.5, 4.5, 8.0), (0, 3, 15.0)]
)
def test_masks_are_those_of_relion(folder, tmp_path, extend, edge, low_pass):
    level = 0.05 if low_pass == 15.0 else 0.2
    words = ["--i", folder / "truth.mrc", "--o", "mask.mrc", "--ini_threshold", level]
    words += ["--extend_inimask", extend, "--width_soft_edge", edge, "--angpix", PIXEL]
    flags = ["--level", level, "--extend", extend, "--edge", edge]
    if low_pass is not None:
        words += ["--lowpass", low_pass]
        flags += ["--low-pass", low_pass]
    relion(tmp_path, "relion_mask_create", *words)
    out = tmp_path / "ours.mrc"
    assert instamap("mask", folder / "truth.mrc", *flags, "-o", out).code == 0
    theirs = mrc.read(tmp_path / "mask.mrc")[0]
    ours = mrc.read(out)[0]
    assert 0.01 < float(theirs.mean()) < 0.9
    assert torch.allclose(theirs, ours, atol=1e-5)
