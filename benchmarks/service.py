"""The service: what computing queries together brings, one client and eight, and many requests.

    python benchmarks/service.py [--requests 20000]

The model is the small CLIP of the package, as training begins with it, and the gallery the built-in demo.
Clients and service share the machine. The aims: eight clients get at least 1.5 times the answers of one,
their p99 stays under 12 times the time of a request alone, nothing is lost, and memory stays flat.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import date
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, f"{sys.path[0]}/tests/support")

from machine import machine
from service_process import Client, load, make_gallery, resident_mib, serving

from csdn.model import CSDN, load_clip, save
from csdn.model.clip import BUILT_IN, WEIGHTS
from csdn.search.search import Filters
from csdn.search.service import Query, Service, Settings, answer

ROUNDS, REQUESTS, CLIENTS, THREADS = 3, 1000, 8, 2
TOKEN = "benchmark"


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    options.add_argument("--requests", type=int, default=20_000)
    requests = options.parse_args().requests
    print(f"{date.today()}  {machine()}\n")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        clip = CSDN.from_clip(load_clip(BUILT_IN, WEIGHTS), identities=1, image_size=(64, 32))
        save(clip.eval(), folder / "model", normalize="imagenet")
        gallery = make_gallery(folder / "gallery", folder / "model", folder / "images", "demo")
        print(f"gallery of {len(gallery)} images, {gallery.manifest.dimension} numbers\n")
        queries = [path.read_bytes() for path in sorted((folder / "images/infrared").rglob("*.png"))[:500]]
        compute(Settings(gallery.address, folder / "model", (), {}), queries)
        with serving(folder / "log", gallery.address, folder / "model", "--rate", "1000000", token=TOKEN) as (
            url,
            process,
        ):
            serve(url, queries)
            endure(url, queries, process.pid, requests)


def compute(settings: Settings, queries: list[bytes]) -> None:
    """Queries a second without HTTP: one at a time, by two threads, eight together."""
    service = Service(settings)
    state = service.state
    asked = [
        Query(state, state.embedder.prepare(query, "png"), "infrared", 10, Filters("visible"))
        for query in queries
    ]

    def by_threads() -> None:
        with ThreadPoolExecutor(THREADS) as pool:
            list(pool.map(lambda query: answer([query]), asked))

    def alone() -> None:
        for query in asked:
            answer([query])

    def together() -> None:
        for start in range(0, len(asked), CLIENTS):
            answer(asked[start : start + CLIENTS])

    ways: dict[str, Callable[[], None]] = {
        "one at a time": alone,
        f"one at a time in {THREADS} threads": by_threads,
        f"{CLIENTS} together": together,
    }
    best = dict.fromkeys(ways, 0.0)
    for _ in range(ROUNDS):
        for way, run in ways.items():
            began = time.perf_counter()
            run()
            best[way] = max(best[way], len(asked) / (time.perf_counter() - began))
    for way, rate in best.items():
        print(f"{way:32}{rate:8.0f} queries/s", flush=True)


def serve(url: str, queries: list[bytes]) -> None:
    """One client and eight, in turn; of each the round with the most answers a second."""
    best: dict[int, tuple[float, list[float]]] = {1: (0, []), CLIENTS: (0, [])}
    for _ in range(ROUNDS):
        for clients in best:
            statuses, seconds, total = load(url, REQUESTS, clients, searching(queries), TOKEN)
            assert set(statuses) == {200}
            best[clients] = max(best[clients], (len(statuses) / total, sorted(seconds)))
    print(f"\n{'clients':8}{'requests/s':>12}{'p50 ms':>10}{'p99 ms':>10}")
    for clients, (rate, seconds) in best.items():
        p99 = seconds[int(0.99 * len(seconds))]
        print(f"{clients:<8}{rate:12.0f}{1000 * statistics.median(seconds):10.1f}{1000 * p99:10.1f}")
    alone = statistics.median(best[1][1])
    p99 = best[CLIENTS][1][int(0.99 * REQUESTS)]
    print(f"{CLIENTS} clients: {best[CLIENTS][0] / best[1][0]:.2f} times the requests of one, ", end="")
    print(f"p99 {p99 / alone:.1f} times the median alone", flush=True)


def endure(url: str, queries: list[bytes], pid: int, requests: int) -> None:
    """Many requests by eight clients, and the memory of the service after each quarter."""
    memory, failed = [resident_mib(pid)], 0
    for _ in range(4):
        statuses, _, _ = load(url, requests // 4, CLIENTS, searching(queries), TOKEN)
        failed += sum(status != 200 for status in statuses)
        memory.append(resident_mib(pid))
    steps = ", ".join(f"{mib:.0f}" for mib in memory)
    print(f"\n{requests} requests: {failed} failed; memory before and after each quarter: {steps} MiB")


def searching(queries: list[bytes]) -> Callable[[Client, int], int]:
    return lambda client, n: client.search(queries[n % len(queries)])[0]


if __name__ == "__main__":
    main()
