"""`make prefect-demo`: a page to look at, and nothing that stays behind."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import httpx
import pytest
from workspace import STAGES, environment, make_workspace, run

from flows.demo import LocalServer, ServerFailed

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
    """Processes that a demo of this project started, and that do not end by themselves within seconds: a
    program that the server had just started may find its parent gone a moment later.
    """
    until = time.monotonic() + 10
    while (found := started_by(project)) and time.monotonic() < until:
        time.sleep(0.1)
    return found


def started_by(project):
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
    assert re.findall(r"^  (\w+): Completed", output, re.MULTILINE) == list(STAGES)
    assert output.splitlines()[-1] == "The run: Completed"
    with pytest.raises(urllib.error.URLError):
        urllib.request.urlopen(page[1], timeout=5)
    assert left_of(project) == []


@pytest.mark.parametrize(
    ("line", "number"),
    [
        ("The run's page", signal.SIGTERM),
        ("server starts", signal.SIGHUP),
        ("server starts", signal.SIGINT),
    ],
)
def test_a_signal_ends_all_of_it(project, line, number):
    process = demo(project, TMPDIR=str(project.parent))
    assert any(line in printed for printed in process.stdout)
    process.send_signal(number)
    process.send_signal(number)  # as where somebody is impatient, or a shell's whole group gets it
    process.communicate(timeout=60)
    assert process.returncode == 128 + number
    assert left_of(project) == []
    assert not list(project.parent.glob("csdn-prefect-*"))


def test_a_command_whose_parent_dies_while_it_starts_ends_too():
    code = (
        "import subprocess\n"
        "from csdn.runtime.process import with_parent\n"
        "print(subprocess.Popen(with_parent('sleep', '60'), stdout=subprocess.DEVNULL).pid)"
    )
    run = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    process = Path(f"/proc/{int(run.stdout)}")  # its parent has died at once
    until = time.monotonic() + 10
    while process.exists() and "Z" not in (process / "stat").read_text().rpartition(")")[2].split()[:1]:
        assert time.monotonic() < until
        time.sleep(0.1)


@pytest.mark.parametrize(
    ("behaviour", "seconds", "says"), [("exit 3", 60, "has ended (3)"), ("sleep 9", 1, "within 1 s")]
)
def test_a_server_that_does_not_start_names_its_log(tmp_path, behaviour, seconds, says):
    program = tmp_path / "prefect"
    program.write_text(f"#!/bin/sh\necho no room\n{behaviour}\n")
    program.chmod(0o755)
    server = LocalServer(tmp_path)
    server.environment["PATH"] = f"{tmp_path}:{os.environ['PATH']}"
    server.start_seconds = seconds
    with pytest.raises(ServerFailed) as error, server.running(tmp_path, "pool"):
        pass
    assert says in str(error.value)
    assert f"{tmp_path}/server.log" in str(error.value)


def test_a_server_of_this_machine_is_not_asked_through_a_proxy(tmp_path, monkeypatch):
    for name in ("http_proxy", "HTTP_PROXY", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    monkeypatch.setenv("no_proxy", "example.com, localhost")
    monkeypatch.setenv("NO_PROXY", "")
    server = LocalServer(tmp_path)
    for name in ("no_proxy", "NO_PROXY"):
        assert {"localhost", "127.0.0.1", "::1"} <= set(server.environment[name].split(","))
    assert server.environment["no_proxy"].startswith("example.com,localhost,")

    class Answer(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b"true")

    with HTTPServer(("127.0.0.1", server.port), Answer) as there:
        threading.Thread(target=there.serve_forever, daemon=True).start()
        assert server.request("health") is True
        assert httpx.get(server.address).json() is True  # as Prefect's own client asks
        there.shutdown()
