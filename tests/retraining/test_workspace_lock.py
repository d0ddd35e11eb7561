"""One thing at a time works in a workspace, and no requested scan of the data is lost."""

import multiprocessing
import os
import signal

import pytest

from csdn.retraining.lock import WorkspaceLocked, scan_on_request, scan_requested, workspace_lock


def test_the_error_names_the_holder_of_the_lock(tmp_path, fault):
    with workspace_lock(tmp_path, "retraining run 20261121-0a1b2c3d"):
        busy = rf"retraining run 2026.*process {os.getpid()}, since 20"
        with pytest.raises(WorkspaceLocked, match=busy) as error, workspace_lock(tmp_path, "csdn promote"):
            pass
        said = str(error.value).split(", since")[0]
        fault("registry", "two runs at a time in a workspace", said)
    with workspace_lock(tmp_path, "csdn promote"):
        pass


def hold(folder, held):
    with workspace_lock(folder, "a run"):
        held.set()
        signal.pause()


def test_the_lock_of_a_killed_holder_is_released(tmp_path):
    held = multiprocessing.get_context("spawn").Event()
    process = multiprocessing.get_context("spawn").Process(target=hold, args=(tmp_path, held))
    process.start()
    assert held.wait(60)
    with pytest.raises(WorkspaceLocked, match=f"process {process.pid}"), workspace_lock(tmp_path, "another"):
        pass
    process.kill()
    process.join()
    with workspace_lock(tmp_path, "another"):
        pass


def test_a_scan_that_is_requested_meanwhile_is_run(tmp_path):
    scans = []

    def scan():
        scans.append("scan")
        if len(scans) == 1:
            with pytest.raises(WorkspaceLocked):
                scan_on_request(tmp_path, "csdn retrain", lambda: scans.append("never"))

    scan_on_request(tmp_path, "csdn retrain", scan)
    assert scans == ["scan", "scan"] and not scan_requested(tmp_path)


def test_a_request_that_comes_while_the_lock_is_released_is_served(tmp_path, monkeypatch):
    """The holder checks once more after the release: a request may have come after its last scan."""
    from csdn.retraining import lock

    scans, remove = [], lock._remove

    def removed_and_requested_at_the_last_moment(request):
        found = remove(request)
        if not found and len(scans) == 1:
            request.touch()
        return found

    monkeypatch.setattr(lock, "_remove", removed_and_requested_at_the_last_moment)
    scan_on_request(tmp_path, "csdn retrain", lambda: scans.append("scan"))
    assert scans == ["scan", "scan"]


def test_a_locked_workspace_keeps_the_request_for_the_next_scan(tmp_path):
    with workspace_lock(tmp_path, "csdn promote"), pytest.raises(WorkspaceLocked):
        scan_on_request(tmp_path, "csdn retrain", lambda: None)
    assert scan_requested(tmp_path)


def test_a_scan_that_fails_is_not_repeated_for_ever(tmp_path):
    def fails():
        raise ValueError("no")

    with pytest.raises(ValueError):
        scan_on_request(tmp_path, "csdn retrain", fails)
    assert not scan_requested(tmp_path)
