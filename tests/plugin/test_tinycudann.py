"""The plugin of tinycudann passes its own tests where there is no card, and says what it left out
for want of one.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[2]
PLUGIN = ROOT / "plugins" / "instamap-tinycudann"


@pytest.fixture
def from_folders(monkeypatch):
    """Both packages are taken from their folders, installed or not."""
    folders = os.pathsep.join([str(ROOT), str(PLUGIN)])
    monkeypatch.setenv("PYTHONPATH", folders)


def test_own_tests_pass(from_folders):
    command = [sys.executable, "-m", "pytest", "-rs"]
    tests = subprocess.run(command, cwd=PLUGIN, capture_output=True, text=True)
    assert tests.returncode == 0, tests.stdout
    if not torch.cuda.is_available():
        assert "torch sees no NVIDIA card" in tests.stdout


def test_it_is_announced_without_torch(from_folders):
    code = (
        "import sys, instamap_tinycudann as plugin; (part,) = plugin.instamap_components();"
        " assert (part.kind, part.name) == ('representation', 'hash-grid-tcnn');"
        " assert 'Müller' in part.cite; assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
