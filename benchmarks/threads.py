"""How OpenMP's threads wait for each other, and what that costs beside other load (csdn.runtime.process).

    python benchmarks/threads.py        about two minutes; the machine should be idle otherwise

Rounds of short trainings (forward and backward passes of a built-in network) in new processes, whose waiting
threads spin (the default of libgomp), spin briefly (as csdn.runtime.process sets it) or sleep at once. First
alone, then beside two processes that keep the cores busy. Speeds are compared within a round only.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from statistics import median

from machine import machine

from csdn.runtime.process import SPIN_COUNT

POLICIES = {
    "spin": {},
    "brief": {"GOMP_SPINCOUNT": SPIN_COUNT},
    "sleep": {"OMP_WAIT_POLICY": "PASSIVE"},
}
BATCH, SECONDS = 64, 3.0
BUSY = "while True: pass"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--train", action="store_true", help=argparse.SUPPRESS)  # what a new process does
    options = parser.parse_args()
    if options.train:
        print(images_per_second())
        return
    print(machine())
    for name, beside in (("alone", 0), ("beside two busy processes", 2)):
        busy = [subprocess.Popen([sys.executable, "-c", BUSY]) for _ in range(beside)]
        try:
            rounds = [{policy: measured(policy) for policy in POLICIES} for _ in range(options.rounds)]
        finally:
            for process in busy:
                process.kill()
                process.wait()
        for policy in POLICIES:
            ratios = sorted(one[policy] / one["spin"] for one in rounds)
            speed = median(one[policy] for one in rounds)
            print(
                f"{name}, {policy}: {speed:.0f} images/s, {median(ratios):.2f} times the default "
                f"({ratios[0]:.2f} to {ratios[-1]:.2f})"
            )


def measured(policy: str) -> float:
    """Images a second of a new process; OpenMP reads its settings once."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("OMP_", "GOMP_"))}
    command = [sys.executable, __file__, "--train"]
    done = subprocess.run(
        command, env=inherited | POLICIES[policy], check=True, stdout=subprocess.PIPE, text=True
    )
    return float(done.stdout)


def images_per_second() -> float:
    import torch

    from csdn.model.clip import BUILT_IN, WEIGHTS, load_clip
    from csdn.model.device import configure_torch
    from csdn.model.network import CSDN

    configure_torch(0, "cpu")
    network = CSDN.from_clip(load_clip(BUILT_IN, WEIGHTS), identities=1, image_size=(64, 32)).train()
    images = {"visible": torch.rand(BATCH, 3, *network.config.image_size)}

    def step() -> None:
        f, g = network.features(images)
        (f.square().sum() + g.square().sum()).backward()

    step()
    began, steps = time.perf_counter(), 0
    while time.perf_counter() - began < SECONDS:
        step()
        steps += 1
    return BATCH * steps / (time.perf_counter() - began)


if __name__ == "__main__":
    main()
