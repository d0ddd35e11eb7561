"""The log of a training: mean losses as rows of a table, the end of a diverged training, the wait for data.

Losses are checked where the log reads them, about twenty times an epoch: a check at each step would make a
GPU wait at each step. The error still names the first bad step. Weights and the optimiser's state are checked
before each checkpoint, and weights at the end: the last checkpoint is always one from before the divergence.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from csdn.data.outputs import write_csv
from csdn.runtime.errors import Diverged
from csdn.training.distributed import all_reduce_any, mean_over_ranks

ROWS_PER_EPOCH = 20

Item = TypeVar("Item")


class LossLog:
    """Collects losses step by step; `rows` holds the means over every `every` steps and over the workers.

    Losses stay tensors until a row is complete, because reading one makes a GPU wait. advice: what to do
    where training diverges.
    """

    def __init__(self, steps_per_epoch: int, advice: str, rows: Sequence[Mapping[str, Any]] = ()) -> None:
        self.every = max(1, steps_per_epoch // ROWS_PER_EPOCH)
        self.rows: list[dict[str, Any]] = [dict(row) for row in rows]
        self._advice = advice
        self._pending: list[tuple[dict[str, Any], dict[str, Tensor]]] = []

    def add(
        self, losses: Mapping[str, Tensor], learning_rate: float, due: bool = False, **position: Any
    ) -> bool:
        """Add one step's losses; returns whether that completed a row (`due`: it does at once).

        Raises Diverged, in all workers, for the first step of the row whose losses are not finite.
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
        """Raise Diverged for the first bad step; the row's means only tell that there is one."""
        for about, step in self._pending:
            means = mean_over_ranks(step)
            check_losses({name: float(mean) for name, mean in means.items()}, about, self._advice)


def _mean(losses: Sequence[Tensor]) -> Tensor:
    return torch.stack(tuple(losses)).double().mean()


def write_log(path: Path, rows: Sequence[Mapping[str, Any]], columns: Sequence[str] = ()) -> None:
    """Rows as CSV, floats with six significant digits (a DVC plot); columns: of a log without rows."""
    write_csv(path, rows, columns, digits=6)


# Divergence.


def check_losses(means: Mapping[str, float], about: Mapping[str, Any], advice: str) -> None:
    """Raise Diverged for losses that are not finite; `about` and `advice` as in `diverged`."""
    bad = [f"{name} = {value:g}" for name, value in means.items() if not math.isfinite(value)]
    if bad:
        raise diverged(f"losses that are not finite: {', '.join(bad)}", about, advice)


def check_tensors(tensors: Mapping[str, Tensor], about: Mapping[str, Any], advice: str) -> None:
    """Raise Diverged, in all workers, where a tensor of any worker holds NaN or infinity."""
    bad = _not_finite(tensors)
    if all_reduce_any(bool(bad)):
        names = ", ".join(bad[:3]) + (f" and {len(bad) - 3} more" if len(bad) > 3 else "")
        raise diverged(f"not finite after this step: {names or 'weights of another worker'}", about, advice)


def _not_finite(tensors: Mapping[str, Tensor]) -> list[str]:
    """The names of those that hold NaN or infinity; a GPU is waited for once.

    Five times as fast as `tensor.isfinite().all()`, which writes a tensor: NaN is in both ends, if in any.
    """
    ends = {name: torch.stack(tensor.aminmax()) for name, tensor in tensors.items() if tensor.numel()}
    flags = [both.isfinite().all() for both in ends.values()]
    if not flags:
        return []
    finite = torch.stack([flag.to(flags[0].device) for flag in flags]).tolist()
    return [name for name, good in zip(ends, finite, strict=True) if not good]


def diverged(found: str, about: Mapping[str, Any], advice: str) -> Diverged:
    """The error for what was found; about: `step`, `epoch` (from 0) and `learning_rate` of a row of the log.

    advice: the parameters to change, as "lower embedding.learning_rate".
    """
    phase = f"phase {about['phase']}, " if "phase" in about else ""
    return Diverged(
        f"training diverged: {phase}epoch {about['epoch'] + 1}, step {about['step']}, at learning rate "
        f"{about['learning_rate']:g}: {found}. No model was written; the last checkpoint before it is kept.\n"
        f"What to do: {advice}; training then starts from the beginning. Also look at the images that were "
        "added last. The same command without a change continues from the checkpoint and most likely "
        "diverges again"
    )


# The wait for data: whether the loader needs more processes.


class DataWaitTimer:
    """Measures the time that a loop waits for the items of `timed`."""

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

    def data_wait_fraction(self) -> float:
        """Waiting time as a fraction of all time since the last call, 0 to 1."""
        now = time.monotonic()
        fraction = self._waited / max(now - self._began, 1e-9)
        self._waited, self._began = 0.0, now
        return min(fraction, 1.0)
