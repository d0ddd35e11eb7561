"""Processes of stages: how their threads wait."""

import subprocess
import sys

import pytest
from workspace import environment

PROGRAM = """
import os, sys
from csdn.runtime.process import run_stage
run_stage(lambda: print(os.environ.get("GOMP_SPINCOUNT"), "torch" in sys.modules), "embedding")
"""


@pytest.mark.parametrize(
    "given, expected",
    [({}, "4000"), ({"GOMP_SPINCOUNT": "7"}, "7"), ({"OMP_WAIT_POLICY": "ACTIVE"}, "None")],
    ids=["by default", "a count is given", "a policy is given"],
)
def test_a_stage_says_how_threads_wait_before_it_loads_torch(given, expected):
    """libgomp reads it once, when torch is loaded."""
    inherited = {
        name: value for name, value in environment().items() if not name.startswith(("OMP_", "GOMP_"))
    }
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], env=inherited | given, check=True, capture_output=True, text=True
    )
    assert done.stdout.split() == [expected, "False"]
