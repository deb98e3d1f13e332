"""The hash grid in tinycudann's hands is instamap's, parameter for parameter."""

import importlib
import sys

import pytest
import reference
import torch
from instamap import PartError, Scene
from instamap.representations.encodings.grid import encode_torch
from instamap.representations.encodings.levels import levels
from instamap.representations.hash_grid import HashGrid
from instamap.testing import RepresentationLaws

from instamap_tinycudann import layout
from instamap_tinycudann.hash_grid import TinyCudaHashGrid

SCENE = Scene(16, 3.0)

# Dense and hashed levels, one whose vertices are a multiple of eight (7 cells: 512), one that fills
# its table to the last entry (15 cells: 4096 = 2^12).
GRIDS = {
    "dense": levels(3, 3, 12, 2, 12, False),
    "filled": levels(2, 7, 15, 2, 12, False),
    "mixed": levels(5, 3, 40, 2, 10, False),
    "smoothstep": levels(4, 5, 33, 4, 9, True),
    "hashed": levels(3, 20, 60, 1, 8, False),
}


def _card() -> str | None:
    """Why there is no tinycudann to compare with, or None where there is."""
    if not torch.cuda.is_available():
        return "torch sees no NVIDIA card"
    try:
        importlib.import_module("tinycudann")
    except (ImportError, OSError) as error:
        return f"tinycudann cannot be imported: {error}"
    return None


NO_CARD = _card()
needs_card = pytest.mark.skipif(NO_CARD is not None, reason=str(NO_CARD))


@pytest.fixture(scope="class")
def written_out():
    """The reference in tinycudann's place."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "tinycudann", reference)
        yield


def random(seed, *shape):
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(*shape, generator=generator, dtype=torch.float64)


def points(grid):
    """Points all over the cube, and some on vertices; away from its faces, where a rounding decides
    which of two lookups with the same value is made.
    """
    x = random(0, 300, 3)
    finest = grid.resolutions[-1]
    x[::5] = (x[::5] * finest).round() / finest
    return x.clamp(1e-9, 1 - 1e-9)


@pytest.mark.parametrize("name", GRIDS)
def test_a_level_is_an_encoding_of_tinycudann(name):
    """The reference of tinycudann's indexing gives the features of ours, in float64 to rounding."""
    grid = GRIDS[name]
    table = random(1, grid.entries, grid.features) - 0.5
    x = points(grid)
    parameters = layout.to_tinycudann(table, grid)
    features = []
    for level, configuration in enumerate(layout.configurations(grid)):
        encoding = reference.Encoding(3, configuration, torch.float64)
        assert encoding.params.shape == parameters[level].shape
        encoding.params.data = parameters[level]
        shifted = layout.shifted(x, grid.resolutions[level])
        features.append(encoding(shifted))
    ours = encode_torch(x, table, grid)
    torch.testing.assert_close(torch.cat(features, 1), ours, rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", GRIDS)
def test_parameters_convert_both_ways_to_the_last_bit(name):
    grid = GRIDS[name]
    table = random(1, grid.entries, grid.features)
    there = layout.to_tinycudann(table, grid)
    assert all(len(flat) % (8 * grid.features) == 0 for flat in there)
    assert torch.equal(layout.from_tinycudann(there, grid), table)


def test_parameters_of_other_levels_are_refused():
    grid = GRIDS["mixed"]
    there = layout.to_tinycudann(random(1, grid.entries, grid.features), grid)
    with pytest.raises(ValueError, match="4 encodings; these levels need 5"):
        layout.from_tinycudann(there[:-1], grid)
    with pytest.raises(ValueError, match="parameters of level 0"):
        layout.from_tinycudann([there[1], *there[1:]], grid)


def test_reference_has_the_published_entries():
    """A hash by hand: modulo 2^32, 5 · 2654435761 is 387276917 and 7 · 805459861 is 1343251731;
    their last ten bits are 117 and 275, and 3 xor 117 xor 275 is 357.
    """
    vertex = [torch.tensor([value]) for value in (3, 5, 7)]
    assert reference.index(vertex, 17, 1024).item() == 357
    assert reference.index(vertex, 17, 4920).item() == 3 + 5 * 17 + 7 * 289


def test_reference_scales_levels_as_tinycudann_does():
    """Two levels of the documented example: 16 · 1.5 - 1 = 23 gives 24 vertices an axis."""
    configuration = {
        "otype": "Grid",
        "type": "Hash",
        "n_levels": 2,
        "n_features_per_level": 2,
        "log2_hashmap_size": 12,
        "base_resolution": 16,
        "per_level_scale": 1.5,
        "interpolation": "Linear",
    }
    encoding = reference.Encoding(3, configuration, torch.float32)
    (first, second) = encoding.levels
    assert first == (15, 16, 4096)
    assert second[1:] == (24, 4096)
    assert second[0] == pytest.approx(23)


@pytest.mark.parametrize("options", [{}, {"interpolation": "smoothstep"}, {"table_size": 9}])
def test_a_model_of_one_opens_on_the_other(written_out, options):
    """Same names, same parameters, same field; same gradients of position and of all parameters."""
    chosen = HashGrid.Options(levels=4, finest=24, **options)
    ours = HashGrid(chosen, SCENE).double()
    theirs = TinyCudaHashGrid(chosen, SCENE).double()
    with torch.no_grad():
        for parameter in ours.parameters():
            parameter.add_(0.1 * random(3, *parameter.shape))
    theirs.load_state_dict(ours.state_dict())
    x = ((random(4, 2, 50, 3) - 0.5) * 40).requires_grad_()
    again = x.detach().clone().requires_grad_()
    here = ours(x)
    there = theirs(again)
    torch.testing.assert_close(there, here, rtol=0, atol=1e-12)
    here.square().sum().backward()
    there.square().sum().backward()
    torch.testing.assert_close(again.grad, x.grad, rtol=1e-9, atol=1e-12)
    for mine, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(other.grad, mine.grad, rtol=1e-9, atol=1e-12)
    ours.load_state_dict(theirs.state_dict())


def test_without_tinycudann_it_says_how_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "tinycudann", None)
    with pytest.raises(PartError, match="an NVIDIA card: pip install git"):
        TinyCudaHashGrid(HashGrid.Options(), SCENE)


def test_without_a_card_it_says_so(monkeypatch, tmp_path):
    """tinycudann raises OSError at import where torch sees no card."""
    module = tmp_path / "tinycudann.py"
    module.write_text('raise EnvironmentError("Unknown compute capability.")\n')
    monkeypatch.delitem(sys.modules, "tinycudann", raising=False)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(PartError, match="needs an NVIDIA card"):
        TinyCudaHashGrid(HashGrid.Options(), SCENE)


@pytest.mark.parametrize(
    ("options", "words"),
    [({"features": 3}, "3 features"), ({"finest": 1625}, "1625 cells")],
)
def test_what_tinycudann_cannot_hold_is_refused(written_out, options, words):
    small = {"levels": 1, "table_size": 4, **options}
    with pytest.raises(PartError, match=words):
        TinyCudaHashGrid(HashGrid.Options(**small), SCENE)


def test_points_elsewhere_are_refused(written_out):
    part = TinyCudaHashGrid(HashGrid.Options(levels=1), SCENE)
    with pytest.raises(PartError, match="points are on meta, tinycudann is on cpu"):
        part(torch.empty(3, 3, device="meta"))


@pytest.mark.usefixtures("written_out")
class TestLaws(RepresentationLaws):
    """With the reference in tinycudann's place: what the part adds to it."""

    name = "hash-grid-tcnn"
    options = {"levels": 3, "finest": 16}

    def make(self, scene):
        return TinyCudaHashGrid(HashGrid.Options(**self.options), scene)


@needs_card
@pytest.mark.parametrize("name", GRIDS)
def test_tinycudann_agrees_with_the_torch_reference(name):
    """Values and gradients on the card, to float32: positions of up to 60 cells are rounded by
    4e-6, sums of gradients by their number.
    """
    package = importlib.import_module("tinycudann")
    grid = GRIDS[name]
    table = random(1, grid.entries, grid.features) - 0.5
    x = points(grid)
    upstream = random(2, len(x), grid.width) - 0.5
    expected = _gradients(lambda x, table: encode_torch(x, table, grid), x, table, upstream)

    def on_card(x, table):
        features = []
        for level, configuration in enumerate(layout.configurations(grid)):
            encoding = package.Encoding(3, configuration, dtype=torch.float32)
            flat = layout.to_tinycudann(table, grid)[level]
            shifted = layout.shifted(x, grid.resolutions[level])
            features.append(torch.func.functional_call(encoding, {"params": flat}, (shifted,)))
        return torch.cat(features, 1)

    card = [tensor.float().cuda() for tensor in (x, table, upstream)]
    found = _gradients(on_card, *card)
    features, grad_x, grad_table = (tensor.double().cpu() for tensor in found)
    torch.testing.assert_close(features, expected[0], rtol=0, atol=2e-5)
    torch.testing.assert_close(grad_table, expected[2], rtol=0, atol=2e-4)
    # A point on a face has the slope of either side.
    apart = (grad_x - expected[1]).abs().amax(1) > 1e-3 * expected[1].abs().max()
    assert not apart[torch.arange(len(x)) % 5 != 0].any()


def _gradients(function, x, table, upstream):
    x = x.clone().requires_grad_()
    table = table.clone().requires_grad_()
    features = function(x, table)
    features.backward(upstream)
    return features.detach(), x.grad, table.grad
