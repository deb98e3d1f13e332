"""Where a run computes: what auto takes, and what is refused with which remedy."""

from pathlib import Path

import pytest
import torch
from support.command import instamap

from instamap.errors import CompositionError, OptionError
from instamap.workflows.choose import resolve
from instamap.workflows.devices import choose_device
from instamap.workflows.map import MapWorkflow
from instamap.workflows.settings import Settings


@pytest.fixture
def two_cards(monkeypatch):
    """A torch that sees two cards."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.version, "cuda", "12.8")


@pytest.fixture
def no_card(monkeypatch):
    """A torch for CUDA that sees no card, nor one of Apple."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    monkeypatch.setattr(torch.version, "cuda", "12.8")
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)


def test_auto_takes_the_first_card(two_cards):
    assert choose_device("auto") == torch.device("cuda:0")
    assert choose_device("cuda:1") == torch.device("cuda:1")
    assert choose_device("cpu") == torch.device("cpu")


def test_auto_takes_the_cpu_without_one(no_card):
    assert choose_device("auto") == torch.device("cpu")


@pytest.mark.parametrize("name", ["cuda", "cuda:0", "mps"])
def test_what_is_not_there_is_refused(no_card, name):
    with pytest.raises(OptionError, match=f"device '{name}' is not there.*choose cpu"):
        choose_device(name)


def test_a_card_too_many_is_refused(two_cards):
    with pytest.raises(OptionError, match="sees 2 cards; choose from cuda:0 to cuda:1"):
        choose_device("cuda:2")


def test_a_torch_for_cpus_is_told_from_a_missing_card(monkeypatch):
    monkeypatch.setattr(torch.version, "cuda", None)
    monkeypatch.setattr(torch.version, "hip", None)
    with pytest.raises(OptionError, match="is built for CPUs; install one for CUDA"):
        choose_device("cuda")


@pytest.mark.parametrize("name", ["gpu", "cuda:", "cuda:-1", "CPU", ""])
def test_other_names_are_refused(name):
    with pytest.raises(OptionError, match="must be one of auto, cpu, cuda, cuda:1 and mps"):
        choose_device(name)


@pytest.mark.parametrize(
    "words",
    [
        ("infer", "run", "x.star"),
        ("states", "run"),
        ("audit", "run"),
        ("morph", "run", "--model", "x.pdb"),
        ("populations", "run"),
        ("reconstruct", "x.star"),
        ("accumulate", "x.star"),
    ],
    ids=lambda words: words[0],
)
def test_commands_that_compute_take_a_device(words, no_card, tmp_path, monkeypatch):
    """And refuse one that is not there before they read anything."""
    monkeypatch.chdir(tmp_path)
    outcome = instamap(*words, "--device", "cuda", "-o", str(tmp_path / "out.pdb"))
    assert "device 'cuda' is not there: torch sees no card" in outcome.refusal


def test_the_map_motion_and_poses_take_a_card(two_cards):
    assert resolve(Settings(particles=Path("x.star"), device="auto")).device == "cuda:0"
    rigid = Settings(particles=Path("x.star"), deformation="rigid", device="cuda:1")
    assert resolve(rigid).device == "cuda:1"
    bending = Settings(particles=Path("x.star"), deformation="bending-field", device="cuda")
    assert resolve(bending).device == "cuda"


def test_a_workflow_may_know_the_cpu_alone(two_cards, monkeypatch):
    """It is there by itself under auto, and in words where a card was asked for."""
    monkeypatch.setattr(MapWorkflow, "takes_device", False)
    assert resolve(Settings(particles=Path("x.star"), device="auto")).device == "cpu"
    with pytest.raises(CompositionError, match="'map' computes on the CPU alone"):
        resolve(Settings(particles=Path("x.star"), device="cuda"))
