"""The decoder: its compiled form against torch in double precision, and in chunks."""

import copy

import pytest
import torch
from torch import Tensor

from instamap.geometry import compiled
from instamap.representations import decoder as decoders
from instamap.representations.decoder import decoder, in_chunks

needs_numba = pytest.mark.skipif(not compiled.usable(), reason="numba cannot be used here")
# Points, features and units: whole blocks and groups, and others.
SIZES = [(1024, 12, 16), (777, 7, 5), (3, 1, 1), (0, 12, 16)]


def network_and_features(points: int, features: int, width: int):
    torch.manual_seed(points + width)
    return decoder(features, width, 1), 4 * torch.randn(points, features)


def values_and_gradients(network, features: Tensor, upstream: Tensor) -> list[Tensor]:
    features = features.clone().requires_grad_()
    values = in_chunks(network, features)
    parameters = list(network.parameters())
    return [values, *torch.autograd.grad(values, [features, *parameters], upstream)]


@needs_numba
@pytest.mark.parametrize("sizes", SIZES)
def test_compiled_values_and_gradients_are_those_of_double_precision(sizes):
    network, features = network_and_features(*sizes)
    upstream = torch.randn(len(features), 1)
    exact = values_and_gradients(
        copy.deepcopy(network).double(), features.double(), upstream.double()
    )
    found = values_and_gradients(network, features, upstream)
    for one, reference in zip(found, exact, strict=True):
        assert one.dtype == torch.float32
        assert one.shape == reference.shape
        error = (one - reference).norm()
        assert error <= 1e-6 * reference.norm() + 1e-7


@needs_numba
def test_the_number_of_threads_changes_no_bit():
    network, features = network_and_features(5000, 12, 16)
    upstream = torch.randn(len(features), 1)
    found = []
    threads = torch.get_num_threads()
    try:
        for count in (1, 3):
            torch.set_num_threads(count)
            found.append(values_and_gradients(network, features, upstream))
    finally:
        torch.set_num_threads(threads)
    for one, other in zip(*found, strict=True):
        assert torch.equal(one, other)


@needs_numba
def test_large_numbers_saturate_and_nan_stays():
    network, _ = network_and_features(1, 1, 4)
    with torch.no_grad():
        network[0].weight.fill_(1.0)
        network[0].bias.zero_()
        network[2].weight.fill_(0.25)
    x = torch.tensor([[1e4], [-1e4], [0.0], [float("nan")]])
    values = in_chunks(network, x)[:, 0]
    torch.testing.assert_close(values[:3], torch.tensor([1e4, 0.0, 0.0]))
    assert values[3].isnan()


@pytest.mark.parametrize("depth", [0, 1, 2])
def test_chunks_give_what_the_whole_gives(depth, monkeypatch):
    monkeypatch.setattr(decoders, "POINTS_AT_ONCE", 100)
    monkeypatch.setattr(decoders, "CHUNKS_KEPT", 2)  # others are computed again
    torch.manual_seed(depth)
    network = decoder(6, 8, depth).double()  # which no compiled form takes
    features = torch.randn(450, 6, dtype=torch.float64)
    upstream = torch.randn(450, 1, dtype=torch.float64)
    found = values_and_gradients(network, features, upstream)
    features.requires_grad_()
    whole = network(features)
    expected = torch.autograd.grad(whole, [features, *network.parameters()], upstream)
    for one, other in zip(found, [whole, *expected], strict=True):
        torch.testing.assert_close(one, other)
