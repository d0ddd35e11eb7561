"""The share of the time that a loop waits for its data."""

from csdn.training import log
from csdn.training.log import Waiting


def test_time_in_the_feed_counts_and_time_in_the_loop_does_not(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(log.time, "monotonic", lambda: now[0])

    def feed():
        for seconds in (1.0, 3.0):
            now[0] += seconds
            yield seconds

    measured = Waiting()
    got = []
    for item in measured.timed(feed()):
        got.append(item)
        now[0] += 6.0
    assert got == [1.0, 3.0]
    assert measured.share() == 4.0 / 16.0
    now[0] += 5.0
    assert measured.share() == 0.0
