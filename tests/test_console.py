"""A log shows the first and the last state of a work, with rate and figures, and few lines between."""

from csdn import console


def test_quick_work_shows_its_result(capsys):
    with console.progress("ingest", "images") as report:
        for done in range(1, 1001):
            report(done, 1000, {"loss": done / 1000})
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2
    assert lines[0].startswith("ingest: 1/1000 images")
    assert lines[-1].startswith("ingest: 1000/1000 images") and "loss 1" in lines[-1] and "/s" in lines[-1]


def test_long_work_shows_a_line_now_and_then(capsys, monkeypatch):
    clock = iter(range(0, 10_000))
    monkeypatch.setattr(console.time, "monotonic", lambda: float(next(clock)))
    with console.progress("embedding", "steps") as report:
        for done in range(1, 101):
            report(done, 100)
    lines = capsys.readouterr().err.splitlines()
    assert 10 <= len(lines) <= 40
    assert "s left" in lines[1]


def test_nothing_done_shows_nothing(capsys):
    with console.progress("ingest", "images"):
        pass
    assert capsys.readouterr().err == ""
