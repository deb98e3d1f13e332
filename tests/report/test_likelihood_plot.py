"""The picture of held-out likelihoods names the best of each fit."""

from PIL import Image

from instamap.report import likelihood_plot


def test_fits_of_different_lengths(tmp_path):
    evaluations = {"half1": [(0, 0.0), (10, 2.5), (20, 2.0)], "half2": [(0, 0.0)]}
    likelihood_plot.plot(tmp_path / "held_out.png", evaluations)
    with Image.open(tmp_path / "held_out.png") as image:
        assert image.size == (896, 504)
