"""What ingest on Ray costs by the number of its tasks, each of which packs a shard of a few small images.

    python benchmarks/ingest_tasks.py [TASKS...]

CPU seconds of the driver and of all processes of the Ray instance. Linux only.
"""

from __future__ import annotations

import os
import resource
import sys
import tempfile
import time
from datetime import date
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "support"))
import numpy as np
from feed_data import jpeg
from machine import machine
from processes import descendants

from csdn.cluster.ingest import packed_on_ray
from csdn.cluster.session import ray_session
from csdn.data.catalog import ImageRecord
from csdn.ingest.ledger import Drop
from csdn.ingest.pack import ShardTask
from csdn.params import load_params

RECORDS = 10  # of a shard
COUNTS = (1_000, 10_000)
TICKS = os.sysconf("SC_CLK_TCK")


def main() -> None:
    counts = [int(count) for count in sys.argv[1:]] or COUNTS
    print(f"{date.today()}  {machine()}\n")
    heads = ("seconds", "driver CPU s", "a task, ms", "all CPU s", "a task, ms")
    print(f"{'tasks':>8}" + "".join(f"{head:>14}" for head in heads))
    with tempfile.TemporaryDirectory() as folder:
        drop = Path(folder) / "drop"
        drop.mkdir()
        picture = jpeg(np.random.default_rng(0), 16, 8)
        for number in range(RECORDS):
            (drop / f"{number}.jpg").write_bytes(picture + bytes([number]))
        with ray_session(None, cpus=2):
            measure(drop, Path(folder), 50)  # starts Ray's processes
            for count in counts:
                seconds, driver, everything = measure(drop, Path(folder), count)
                row = (seconds, driver, 1000 * driver / count, everything, 1000 * everything / count)
                print(f"{count:8d}" + "".join(f"{value:14.1f}" for value in row), flush=True)


def measure(drop: Path, folder: Path, count: int) -> tuple[float, float, float]:
    """(seconds, CPU seconds of this process, of this process and Ray's) of `count` tasks."""
    params = load_params(Path(__file__).parents[1] / "params.yaml")
    packer = packed_on_ray(params.scaling)
    settings = params.ingest.model_copy(update={"store": None})
    size = (drop / "0.jpg").stat().st_size
    tasks = [
        ShardTask(
            Drop("0" * 64, str(drop), "cameras"),
            [ImageRecord(f"{number}.jpg", f"p{task}", "visible", "c1", size) for number in range(RECORDS)],
            folder,
            f"{task:06d}",
            settings,
            "run",
        )
        for task in range(count)
    ]
    before, began = (cpu_seconds(), ray_cpu_seconds()), time.perf_counter()
    for shard in packer(tasks, 2):
        assert len(shard.images) == RECORDS
        (folder / shard.temporary).unlink()
    seconds = time.perf_counter() - began
    driver, others = cpu_seconds() - before[0], ray_cpu_seconds() - before[1]
    return seconds, driver, driver + others


def cpu_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def ray_cpu_seconds() -> float:
    """Of the processes below this one, with those of theirs that have ended."""
    stats = [Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2] for process in descendants()]
    return sum(sum(map(int, stat.split()[11:15])) for stat in stats) / TICKS


if __name__ == "__main__":
    main()
