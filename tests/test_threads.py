"""Work shared out among threads: in order, and as the caller's thread would do it."""

import pytest
import torch

from instamap.statistics.quadratic import Quadratic, real_transform
from instamap.threads import in_order, in_pieces


@pytest.fixture
def four_threads(torch_threads):
    torch_threads(4)


@pytest.mark.parametrize("enabled", [True, False])
def test_gradients_are_recorded_where_the_caller_records_them(four_threads, enabled):
    """Each thread of torch has a switch of its own, which begins as on."""
    weight = torch.ones(3, requires_grad=True)
    with torch.set_grad_enabled(enabled):
        outcomes = list(in_order(lambda factor: factor * weight, range(20)))
    assert [one.requires_grad for one in outcomes] == [enabled] * 20
    assert [float(one[0].detach()) for one in outcomes] == list(range(20))


def test_each_thread_of_pieces_has_one_of_torch(four_threads):
    found = torch.zeros(40, dtype=torch.long)

    def work(piece: slice) -> None:
        found[piece] = torch.get_num_threads()

    in_pieces(work, 40, 1 << 20, found.device)
    assert found.tolist() == [1] * 40
    assert torch.get_num_threads() == 4


def test_a_gradient_by_several_threads_is_that_by_one(torch_threads, monkeypatch):
    """What the threads of a function's forward pass write must not become a part of its graph."""
    monkeypatch.setattr("instamap.threads.NUMBERS_IN_CACHE", 1)
    generator = torch.Generator().manual_seed(0)
    b, volume = torch.randn(2, 24, 10, 12, generator=generator)
    function = Quadratic(b, real_transform(torch.randn(48, 20, 24, generator=generator)))
    found = []
    for threads in (1, 4, 4, 4):
        torch_threads(threads)
        given = volume.clone().requires_grad_()
        value = function(given)
        value.backward()
        found.append((float(value.detach()), given.grad))
    for value, gradient in found[1:]:
        assert value == found[0][0] and torch.equal(gradient, found[0][1])
