"""`make prefect-demo`: a page to look at, and nothing that stays behind."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path

import pytest
from workspace import STAGES, environment, make_workspace, run

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux", reason="looks for processes in /proc"),
]


@pytest.fixture
def project(tmp_path):
    """The project with stages that only say who they are."""
    folder = make_workspace(tmp_path / "project")
    stages = {stage: {"cmd": f"echo this is {stage}"} for stage in STAGES}
    (folder / "dvc.yaml").write_text(json.dumps({"stages": stages}))
    run(folder, "dvc", "init", "--no-scm", "--quiet", "--force")
    return folder


def demo(project, **more):
    """`python -m flows.demo` in the project, with its output to read."""
    # What it starts is found again by this, and nothing else of the machine has it.
    return subprocess.Popen(
        [sys.executable, "-m", "flows.demo"],
        cwd=project,
        env=environment() | {"CSDN_DEMO_OF": str(project)} | more,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def left_of(project):
    """Processes that a demo of this project started."""
    found = []
    for path in Path("/proc").glob("[0-9]*/environ"):
        try:
            if f"CSDN_DEMO_OF={project}".encode() in path.read_bytes() and int(path.parts[2]) != os.getpid():
                found.append(path.parts[2])
        except OSError:  # it has ended, or is somebody else's
            continue
    return found


def test_it_runs_the_pipeline_names_the_page_and_leaves_nothing(project):
    process = demo(project)
    output = process.communicate(timeout=300)[0]
    assert process.returncode == 0, output
    page = re.search(r"The run's page: (http://127.0.0.1:\d+)/runs/flow-run/[0-9a-f-]{36}", output)
    assert [line.split(":")[0].strip() for line in output.splitlines()[2:7]] == list(STAGES)
    assert output.splitlines()[-1] == "The run: Completed"
    with pytest.raises(urllib.error.URLError):
        urllib.request.urlopen(page[1], timeout=5)
    assert left_of(project) == []


def test_ctrl_c_ends_all_of_it(project):
    process = demo(project)
    for line in process.stdout:
        if "The run's page" in line:
            break
    process.send_signal(2)
    process.communicate(timeout=60)
    assert process.returncode == 130
    assert left_of(project) == []
