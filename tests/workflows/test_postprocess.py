"""Postprocessing: what it says of maps whose truth is known, its files, and what it refuses."""

import dataclasses
import json
import math
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest
import starfile
import torch
from support.command import correlation, instamap
from support.half_maps import halves, particle, white

from instamap.errors import DataError
from instamap.maps import directional_fsc, mask, mrc
from instamap.workflows import postprocess as workflow
from instamap.workflows.postprocess import PostprocessSettings

BOX = 48
PIXEL = 1.5
B_FACTOR = 150.0  # Å², of every point of the particle
NOISE = 2.0  # standard deviation in a half map, in that of the truth
FILES = {
    "directions.png",
    "fsc.png",
    "guinier.png",
    "local_resolution.png",
    "mask.mrc",
    "postprocess.json",
    "postprocess.mrc",
    "postprocess.star",
    "postprocess_fsc.csv",
    "postprocess_fsc.xml",
    "postprocess_locres.mrc",
    "postprocess_locres_filtered.mrc",
    "postprocess_masked.mrc",
}
ORIGIN = (3.0, 0.0, -6.0)


@pytest.fixture(scope="module")
def outcome(tmp_path_factory):
    """The folder with half maps, and what the command says."""
    path = tmp_path_factory.mktemp("postprocess")
    truth = particle(BOX, PIXEL, B_FACTOR)
    one, other = halves(truth, NOISE * float(truth.std()))
    for name, volume in (("half1", one), ("half2", other), ("truth", truth)):
        mrc.write(path / f"{name}.mrc", volume, PIXEL, origin=ORIGIN)
    halves_of_it = (path / "half1.mrc", path / "half2.mrc")
    done = instamap("postprocess", *halves_of_it, "--auto-mask", "-o", path / "out")
    assert done.code == 0, done
    return path, done


def settings(path, **options) -> PostprocessSettings:
    return PostprocessSettings(path / "half1.mrc", path / "half2.mrc", **options)


def test_all_files_are_there_and_listed(outcome):
    path, done = outcome
    out = path / "out"
    assert {file.name for file in out.iterdir()} == FILES
    record = json.loads((out / "postprocess.json").read_text())
    assert set(record["files"]) == FILES
    for name in FILES:
        if name.endswith(".png"):
            assert (out / name).read_bytes().startswith(b"\x89PNG")
    assert f"resolution {record['resolution']:.2f} Å" in " ".join(done.out.split())


def test_maps_are_where_the_half_maps_are(outcome):
    path, _ = outcome
    for name in FILES:
        if name.endswith(".mrc"):
            volume, pixel_size = mrc.read(path / "out" / name)
            assert len(volume) == BOX and pixel_size == PIXEL
            assert mrc.read_origin(path / "out" / name) == ORIGIN


def test_the_b_factor_is_that_of_the_points(outcome):
    """Points that scatter alike at every frequency, as far as there is signal: what is left of the
    Guinier plot's curvature is the shape of their cloud.
    """
    path, _ = outcome
    found = workflow.postprocess(settings(path, auto_mask=True, local=False))
    assert found.sharpened.b_factor == pytest.approx(-B_FACTOR, rel=0.35)


def test_maps_are_nearer_to_the_truth(outcome):
    path, _ = outcome
    truth = mrc.read(path / "truth.mrc")[0]
    inside = mrc.read(path / "out" / "mask.mrc")[0] > 0.5
    one = mrc.read(path / "half1.mrc")[0]
    other = mrc.read(path / "half2.mrc")[0]
    before = correlation(0.5 * (one + other), truth, inside)
    result = workflow.postprocess(settings(path, auto_mask=True, b_factor=0.0))
    assert correlation(result.sharpened.volume, truth, inside) > before
    assert correlation(result.filtered, truth, inside) > before


def test_the_star_file_has_the_numbers(outcome):
    path, _ = outcome
    tables = starfile.read(path / "out" / "postprocess.star")
    record = json.loads((path / "out" / "postprocess.json").read_text())
    general = tables["general"]
    shells = tables["fsc"]
    corrected = shells["rlnFourierShellCorrelationCorrected"]
    last = next(index for index, value in enumerate(corrected) if value < 0.143) - 1
    assert general["rlnFinalResolution"] == pytest.approx(BOX * PIXEL / last, abs=1e-5)
    assert general["rlnBfactorUsedForSharpening"] == pytest.approx(record["b_factor"], abs=1e-3)
    assert record["resolution"] <= general["rlnFinalResolution"]
    assert len(shells) == BOX // 2 + 1
    assert shells["rlnResolution"][4] == pytest.approx(4 / (BOX * PIXEL))
    assert len(tables["guinier"]) == BOX // 2 + 1


def test_the_xml_file_has_the_corrected_curve(outcome):
    path, _ = outcome
    root = ET.parse(path / "out" / "postprocess_fsc.xml").getroot()
    assert root.tag == "fsc" and root.attrib["xaxis"] == "Resolution (A-1)"
    ordinates = [float(node.text) for node in root.iter("y")]
    curve = starfile.read(path / "out" / "postprocess.star")["fsc"]
    column = curve["rlnFourierShellCorrelationCorrected"].tolist()
    assert ordinates == pytest.approx(column, abs=1e-5)


def test_a_given_mask_and_a_given_b_factor(outcome, tmp_path):
    path, _ = outcome
    soft = mask.sphere(BOX, PIXEL, 30.0, 8.0)
    mrc.write(tmp_path / "soft.mrc", soft, PIXEL)
    found = workflow.postprocess(
        settings(path, mask=tmp_path / "soft.mrc", b_factor=-40.0, local=False)
    )
    assert torch.equal(found.half_maps.mask, soft)
    assert found.sharpened.b_factor == -40 and found.sharpened.fit is None
    assert found.local is None and found.filtered is None


def curve(path, rows) -> Path:
    """A STAR file of a detector's MTF, whose rows are frequency and value."""
    head = "data_\n\nloop_\n_rlnResolutionInversePixel #1\n_rlnMtfValue #2\n"
    path.write_text(head + "".join(f"{x:.6f} {value:.8f}\n" for x, value in rows))
    return path


@pytest.mark.parametrize("angpix", [None, 0.5 * PIXEL])
def test_a_detector_whose_mtf_is_a_gaussian_is_a_b_factor(outcome, tmp_path, angpix):
    """exp(-B s²/4) in closed form: dividing by it sharpens by B, whatever the detector's pixel."""
    path, _ = outcome
    b_factor = 40.0
    pixel = angpix or PIXEL
    rows = []
    for number in range(1001):
        x = number / 2000
        rows.append((x, math.exp(-b_factor / 4 * (x / pixel) ** 2)))
    file = curve(tmp_path / "mtf.star", rows)
    by_mtf = settings(path, mtf=file, mtf_angpix=angpix, b_factor=-30.0, local=False)
    alone = settings(path, b_factor=-30.0 - b_factor, local=False)
    ours = workflow.postprocess(by_mtf).sharpened
    expected = workflow.postprocess(alone).sharpened
    assert torch.allclose(ours.volume, expected.volume, atol=1e-4 * float(ours.volume.std()))
    assert list(ours.amplitudes) == ["original", "MTF corrected", "weighted", "sharpened"]
    assert "MTF corrected" not in expected.amplitudes


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([(0.0, 1.0), (0.5, 0.0)], "rlnMtfValue in row 2"),
        ([(0.0, 1.0), (0.0, 0.5)], "does not rise"),
        ([(0.0, 1.0)], "does not rise"),
    ],
)
def test_a_curve_that_cannot_be_divided_by_is_refused(outcome, tmp_path, rows, said):
    path, _ = outcome
    file = curve(tmp_path / "mtf.star", rows)
    halves_of_it = (path / "half1.mrc", path / "half2.mrc")
    refused = instamap("postprocess", *halves_of_it, "--mtf", file, "-o", tmp_path / "out")
    assert said in refused.refusal


def test_a_notebook_shows_the_same(outcome):
    path, _ = outcome
    result = workflow.postprocess(settings(path, auto_mask=True))
    facts = f"two half maps of {BOX} px of {PIXEL:g} Å, in a mask"
    assert repr(result) == f"<PostprocessResult: {result.verdict}; {facts}>"
    card = result._repr_html_()
    assert facts in card and card.count("<img") == 3
    for name, words in result.summary():
        assert f">{name}<" in card and words in card
    assert result.plot_slices().axes
    assert result.plot_local_resolution().axes
    with pytest.raises(DataError, match="local=True"):
        dataclasses.replace(result, local=None).plot_local_resolution()


def test_without_a_mask_it_is_said(outcome):
    path, _ = outcome
    found = workflow.postprocess(settings(path, local=False))
    assert list(found.curves) == ["whole"]
    assert any("no mask" in line for line in found.messages)


def test_a_mask_that_is_too_tight_is_said(tmp_path):
    """Voxels at random: what it shares at every frequency is the mask's."""
    truth = particle(BOX, PIXEL, B_FACTOR)
    one, other = halves(truth, NOISE * float(truth.std()))
    mrc.write(tmp_path / "half1.mrc", one, PIXEL)
    mrc.write(tmp_path / "half2.mrc", other, PIXEL)
    rough = (white(BOX, 5) > 1.5).float()
    mrc.write(tmp_path / "rough.mrc", rough, PIXEL)
    found = workflow.postprocess(settings(tmp_path, mask=tmp_path / "rough.mrc", local=False))
    assert any("the mask makes the resolution worse" in line for line in found.messages)


def test_of_noise_there_is_no_resolution_and_no_sharpening(tmp_path):
    mrc.write(tmp_path / "half1.mrc", white(BOX, 11), PIXEL)
    mrc.write(tmp_path / "half2.mrc", white(BOX, 12), PIXEL)
    found = workflow.postprocess(settings(tmp_path, window=20.0))
    assert found.resolution() > 0.2 * BOX * PIXEL
    assert found.sharpened.b_factor == 0
    assert found.local.without_signal() > 0.9


def test_views_say_how_often_directions_were_seen(outcome, tmp_path):
    path, _ = outcome
    rows = [
        f"{index % 3 + 1}@a.mrcs {37.0 * index % 360} {90.0} {11.0 * index % 360}"
        for index in range(300)
    ]
    labels = ("rlnImageName", "rlnAngleRot", "rlnAngleTilt", "rlnAnglePsi")
    more = ("rlnVoltage", "rlnSphericalAberration", "rlnAmplitudeContrast", "rlnDetectorPixelSize")
    heads = [f"_{label} #{number}" for number, label in enumerate((*labels, *more), 1)]
    constants = " 300 2.7 0.1 1.5 10000 10000 10000 0"
    optics = ("rlnMagnification", "rlnDefocusU", "rlnDefocusV", "rlnDefocusAngle")
    heads += [f"_{label} #{number}" for number, label in enumerate(optics, 9)]
    text = "\n".join(["data_", "loop_", *heads, *(row + constants for row in rows), ""])
    (tmp_path / "particles.star").write_text(text)
    found = workflow.postprocess(settings(path, local=False, particles=tmp_path / "particles.star"))
    # side views of all azimuths: a direction at θ from the axis is less than w from a slice where
    # sin θ |cos φ| < sin w
    height = directional_fsc.bin_centres()[:, 2]
    width = math.sin(directional_fsc.SLICE_HALF_WIDTH)
    sine = (1 - height.square()).sqrt()
    expected = 2 / math.pi * torch.asin((width / sine).clamp(max=1)) / width
    rows = (found.sampling / expected).reshape(directional_fsc.HEIGHT_BINS, -1)
    # azimuths a degree apart: 5 or 6 of them are within a slice
    assert ((rows.mean(1) - 1).abs() < 0.15).all()
    assert found.record()["views"]["sampling_factor"] < 0.95


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("half1.mrc", "none.mrc"), "map 'none.mrc' does not exist"),
        (("half1.mrc", "half1.mrc"), "are the same; give two half maps"),
        (("half1.mrc", "flat.mrc"), "map 'flat.mrc' is 2 everywhere"),
        (("half1.mrc", "small.mrc"), "has a box of 48, 'small.mrc' of 16"),
        (("half1.mrc", "half2.mrc", "--auto-mask", "--mask", "m.mrc"), "leave one out"),
        (("half1.mrc", "half2.mrc", "--window", "-3"), "--window is -3 Å"),
        (("half1.mrc", "half2.mrc", "--window", "900"), "window of 900 Å does not fit"),
        (("half1.mrc", "half2.mrc", "--fit-from", "0"), "--fit-from is 0 Å"),
        (("half1.mrc", "half2.mrc", "--mtf-angpix", "0.8"), "there is no --mtf; give both"),
        (("half1.mrc", "half2.mrc", "--mtf", "none.star"), "none.star' does not exist"),
        (("half1.mrc", "half2.mrc", "--mtf", "half1.mrc"), "half1.mrc"),
        (("half1.mrc", "half2.mrc", "--particles", "none.star"), "none.star' does not exist"),
    ],
)
def test_the_command_refuses(outcome, monkeypatch, tmp_path, words, said):
    path, _ = outcome
    monkeypatch.chdir(path)
    if not (path / "flat.mrc").exists():
        mrc.write("flat.mrc", torch.full((BOX,) * 3, 2.0), PIXEL)
        mrc.write("small.mrc", torch.rand(16, 16, 16), PIXEL)
    assert said in instamap("postprocess", *words, "-o", tmp_path / "out").refusal
    assert not (tmp_path / "out").exists()


def test_a_folder_is_not_replaced_unasked(outcome):
    path, _ = outcome
    words = (path / "half1.mrc", path / "half2.mrc", "-o", path / "out", "--no-local")
    assert "already holds a postprocessing" in instamap("postprocess", *words).refusal
    assert instamap("postprocess", *words, "--force").code == 0
    assert not (path / "out" / "postprocess_locres.mrc").exists(), "of the earlier one"


def test_b_factors_of_rising_amplitudes_do_not_dampen(outcome, tmp_path):
    path, _ = outcome
    for name in ("half1", "half2"):
        volume = mrc.read(path / f"{name}.mrc")[0]
        transform = torch.fft.rfftn(volume.double())
        axis = torch.fft.fftfreq(BOX, PIXEL, dtype=torch.float64)
        half = torch.fft.rfftfreq(BOX, PIXEL, dtype=torch.float64)
        square = axis[:, None, None] ** 2 + axis[:, None] ** 2 + half**2
        sharp = torch.fft.irfftn(transform * torch.exp(60 * square), s=volume.shape)
        mrc.write(tmp_path / f"{name}.mrc", sharp, PIXEL)
    found = workflow.postprocess(settings(tmp_path, local=False))
    assert found.sharpened.b_factor == 0
    assert any("amplitudes rise with frequency" in line for line in found.messages)
    assert math.isfinite(found.resolution())
