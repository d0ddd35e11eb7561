"""One thing at a time works in a workspace, and nobody's call for a look at the data is lost."""

import multiprocessing
import os
import signal

import pytest

from csdn.retraining.lock import WorkspaceLocked, asked, when_asked, workspace_lock


def test_the_second_is_told_who_is_first(tmp_path, fault):
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


def test_a_killed_holder_holds_no_longer(tmp_path):
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


def test_a_look_that_is_asked_for_meanwhile_is_had(tmp_path):
    looks = []

    def look():
        looks.append("look")
        if len(looks) == 1:
            with pytest.raises(WorkspaceLocked):
                when_asked(tmp_path, "a trigger", lambda: looks.append("never"))

    when_asked(tmp_path, "a trigger", look)
    assert looks == ["look", "look"] and not asked(tmp_path)


def test_a_trigger_that_comes_while_the_lock_is_let_go_is_heard(tmp_path, monkeypatch):
    """The holder asks once more when it has let go: a mark that came after its last look is there."""
    from csdn.retraining import lock

    looks, take = [], lock._take

    def taken_and_asked_at_the_last_moment(mark):
        found = take(mark)
        if not found and len(looks) == 1:
            mark.touch()
        return found

    monkeypatch.setattr(lock, "_take", taken_and_asked_at_the_last_moment)
    when_asked(tmp_path, "a trigger", lambda: looks.append("look"))
    assert looks == ["look", "look"]


def test_a_busy_workspace_keeps_the_mark_for_who_comes_next(tmp_path):
    with workspace_lock(tmp_path, "csdn promote"), pytest.raises(WorkspaceLocked):
        when_asked(tmp_path, "a trigger", lambda: None)
    assert asked(tmp_path)


def test_a_look_that_fails_is_no_reason_to_look_for_ever(tmp_path):
    def fails():
        raise ValueError("no")

    with pytest.raises(ValueError):
        when_asked(tmp_path, "a trigger", fails)
    assert not asked(tmp_path)
