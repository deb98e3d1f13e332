"""Tests of Triton's kernels: on a card where there is one, else in Triton's interpreter.

The interpreter is chosen by the environment when Triton is imported, so a test file that needs it
is run again in a process of its own.
"""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from instamap.geometry.device_kernels import interpreted

ROOT = Path(__file__).parents[2]
CARD = torch.cuda.is_available()
HAS_TRITON = importlib.util.find_spec("triton") is not None
DEVICE = torch.device("cuda" if CARD else "cpu")

needs_kernels = pytest.mark.skipif(
    not (HAS_TRITON and (CARD or interpreted())),
    reason="Triton needs a card or its interpreter, in which the last test of this file runs it",
)
needs_process = pytest.mark.skipif(
    CARD or interpreted() or not HAS_TRITON,
    reason="Triton is not installed, or the tests of this file run as they are",
)


def run_interpreted(file: str) -> None:
    """Runs the tests of a file in Triton's interpreter, and fails where one of them does."""
    settings = {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "pytest", "-v", file]
    tests = subprocess.run(
        command, cwd=ROOT, env=os.environ | settings, capture_output=True, text=True
    )
    assert tests.returncode == 0, tests.stdout
    assert "passed" in tests.stdout
