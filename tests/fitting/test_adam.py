"""The optimiser, beside torch's own."""

import copy
import subprocess
import sys

import torch

from instamap.fitting.adam import Adam

SHAPES = [(3, 4), (5,), ()]


def parameters(seed: int) -> list[torch.nn.Parameter]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.nn.Parameter(torch.randn(shape, generator=generator)) for shape in SHAPES]


def groups(of: list[torch.nn.Parameter]) -> list[dict]:
    return [{"params": of[:1], "lr": 0.2, "part": "one"}, {"params": of[1:], "lr": 0.01}]


def lower(optimiser, of: list[torch.nn.Parameter]) -> None:
    """A step on a function whose minimum is at 1, with parts of different slopes."""
    optimiser.zero_grad()
    loss = sum(((number + 1) * (one - 1) ** 4).sum() for number, one in enumerate(of))
    loss.backward()
    optimiser.step()


def test_steps_are_those_of_torch():
    own, theirs = parameters(0), parameters(0)
    optimiser = Adam(groups(own))
    reference = torch.optim.Adam(groups(theirs))
    for number in range(12):
        for each in (optimiser, reference):
            each.param_groups[0]["lr"] = 0.2 / (1 + number)
        for of in (own, theirs):
            of[2].requires_grad_(number % 3 > 0)  # a stage in which it does not learn
        lower(optimiser, own)
        lower(reference, theirs)
    for one, other in zip(own, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-7)


def test_what_it_knew_goes_on_elsewhere():
    first = parameters(1)
    optimiser = Adam(groups(first))
    for _ in range(3):
        lower(optimiser, first)
    known = copy.deepcopy(optimiser.state_dict())
    values = [one.detach().clone() for one in first]
    lower(optimiser, first)

    second = parameters(2)
    with torch.no_grad():
        for one, value in zip(second, values, strict=True):
            one.copy_(value)
    other = Adam(groups(second))
    other.load_state_dict(known)
    lower(other, second)
    for one, two in zip(first, second, strict=True):
        assert torch.equal(one, two)
    steps = [steps for steps, _, _ in known["parameters"]]
    assert steps == [3, 3, 3]  # the copy was not moved on


def test_a_fit_does_not_load_torchs_compiler():
    code = (
        "import sys, torch; from instamap.fitting.adam import Adam;"
        "p = torch.nn.Parameter(torch.ones(3)); a = Adam([{'params': [p], 'lr': 0.1}]);"
        "(p ** 2).sum().backward(); a.step(); sys.exit('torch._dynamo' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
