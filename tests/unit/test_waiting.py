"""The fraction of its time that a loop waits for data."""

from csdn.training import log
from csdn.training.log import DataWaitTimer


def test_time_in_the_loader_counts_and_time_in_the_loop_does_not(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(log.time, "monotonic", lambda: now[0])

    def loader():
        for seconds in (1.0, 3.0):
            now[0] += seconds
            yield seconds

    measured = DataWaitTimer()
    got = []
    for item in measured.timed(loader()):
        got.append(item)
        now[0] += 6.0
    assert got == [1.0, 3.0]
    assert measured.data_wait_fraction() == 4.0 / 16.0
    now[0] += 5.0
    assert measured.data_wait_fraction() == 0.0
