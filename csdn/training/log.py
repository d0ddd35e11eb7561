"""A training whose numbers are not finite any more ends before it writes them anywhere.

Losses are checked where the log reads them, about twenty times an epoch: a check at each step would make a
GPU wait at each step. The error names the first bad step all the same. Weights and the optimiser's state are
checked before each checkpoint, and weights at the end: the last checkpoint is one from before the divergence.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from csdn.runtime.errors import Diverged
from csdn.runtime.files import write_csv
from csdn.training.distributed import all_reduce_any, mean_over_ranks


def check_losses(means: Mapping[str, float], about: Mapping[str, Any], advice: str) -> None:
    """Raise Diverged for losses that are not finite; `about` and `advice` as in `diverged`."""
    bad = [f"{name} = {value:g}" for name, value in means.items() if not math.isfinite(value)]
    if bad:
        raise diverged(f"losses that are not finite: {', '.join(bad)}", about, advice)


def check_tensors(tensors: Mapping[str, Tensor], about: Mapping[str, Any], advice: str) -> None:
    """Raise Diverged, in all workers, where a tensor of any worker holds NaN or infinity."""
    bad = [name for name, tensor in tensors.items() if not tensor.isfinite().all()]
    if all_reduce_any(bool(bad)):
        names = ", ".join(bad[:3]) + (f" and {len(bad) - 3} more" if len(bad) > 3 else "")
        raise diverged(
            f"not finite are, after this step, {names or 'weights of another worker'}", about, advice
        )


def diverged(found: str, about: Mapping[str, Any], advice: str) -> Diverged:
    """The error for what was found; about: `step`, `epoch` (from 0) and `learning_rate` of a row of the log.

    advice: the parameters to change, as "lower embedding.learning_rate".
    """
    phase = f"phase {about['phase']}, " if "phase" in about else ""
    return Diverged(
        f"training diverged: {phase}epoch {about['epoch'] + 1}, step {about['step']}, at learning rate "
        f"{about['learning_rate']:g}: {found}. No model was written; the last checkpoint before it is kept.\n"
        f"What to do: {advice}: training then begins anew. And look at the images that came last. The same "
        "command without a change goes on from the checkpoint, and most likely diverges again"
    )


# Losses as rows of a table: the mean over a few steps each, so that a long run's log stays small.


ROWS_PER_EPOCH = 20


class LossLog:
    """Collects losses step by step; `rows` holds the means over every `every` steps and over the workers.

    Losses stay tensors until a row is due: reading one earlier would make a GPU wait at each step.
    advice: what to do where training diverged.
    """

    def __init__(self, steps_per_epoch: int, advice: str, rows: Sequence[Mapping[str, Any]] = ()) -> None:
        self.every = max(1, steps_per_epoch // ROWS_PER_EPOCH)
        self.rows: list[dict[str, Any]] = [dict(row) for row in rows]
        self._advice = advice
        self._pending: list[tuple[dict[str, Any], dict[str, torch.Tensor]]] = []

    def add(
        self, losses: Mapping[str, torch.Tensor], learning_rate: float, due: bool = False, **position: Any
    ) -> bool:
        """Take one step's losses; true when that (or `due`, the epoch's last step) completed a row.

        Raises Diverged where a row has losses that are not finite: of their first step, in all workers.
        """
        about = {**position, "learning_rate": learning_rate}
        self._pending.append((about, {name: loss.detach() for name, loss in losses.items()}))
        if len(self._pending) < self.every and not due:
            return False
        means = {name: _mean([step[name] for _, step in self._pending]) for name in losses}
        row = {name: float(mean) for name, mean in mean_over_ranks(means).items()}
        if not all(map(math.isfinite, row.values())):
            self._check_each_step()
        check_losses(row, about, self._advice)
        self.rows.append({**position, **row, "learning_rate": learning_rate})
        self._pending.clear()
        return True

    def _check_each_step(self) -> None:
        """Raise Diverged of the first bad step; the row alone says no more than that there is one."""
        for about, step in self._pending:
            means = mean_over_ranks(step)
            check_losses({name: float(mean) for name, mean in means.items()}, about, self._advice)


def _mean(losses: Sequence[torch.Tensor]) -> torch.Tensor:
    return torch.stack(tuple(losses)).double().mean()


def write_log(path: Path, rows: Sequence[Mapping[str, Any]], columns: Sequence[str] = ()) -> None:
    """Rows as CSV, floats with six significant digits (a DVC plot); columns: of a log without rows."""
    write_csv(path, rows, columns, digits=6)


# How much of its time a training waits for data: whether the feed needs more processes.


Item = TypeVar("Item")


class Waiting:
    """Measures the time that is spent in getting the items of `timed`."""

    def __init__(self) -> None:
        self._waited = 0.0
        self._began = time.monotonic()

    def timed(self, items: Iterable[Item]) -> Iterator[Item]:
        """The items, in turn."""
        iterator = iter(items)
        while True:
            began = time.monotonic()
            try:
                item = next(iterator)
            except StopIteration:
                return
            finally:
                self._waited += time.monotonic() - began
            yield item

    def share(self) -> float:
        """Waiting time over all time, from 0 to 1, since this was last asked."""
        now = time.monotonic()
        share = self._waited / max(now - self._began, 1e-9)
        self._waited, self._began = 0.0, now
        return min(share, 1.0)
