"""Losses as rows of a table: the mean over a few steps each, so that a long run's log stays small."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from csdn.files import write_csv
from csdn.training.collectives import mean_over_ranks
from csdn.training.divergence import check_losses

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
