"""Losses as rows of a table: the mean over a few steps each, so that a long run's log stays small."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from csdn.files import write_csv
from csdn.training.collectives import mean_over_ranks

ROWS_PER_EPOCH = 20


class LossLog:
    """Collects losses step by step; `rows` holds the means over every `every` steps and over the workers.

    Losses stay tensors until a row is due: reading one earlier would make a GPU wait at each step.
    """

    def __init__(self, steps_per_epoch: int, rows: Sequence[Mapping[str, Any]] = ()) -> None:
        self.every = max(1, steps_per_epoch // ROWS_PER_EPOCH)
        self.rows: list[dict[str, Any]] = [dict(row) for row in rows]
        self._pending: list[dict[str, torch.Tensor]] = []

    def add(self, losses: Mapping[str, torch.Tensor], due: bool = False, **position: Any) -> bool:
        """Take one step's losses; true when that (or `due`, the epoch's last step) completed a row."""
        self._pending.append({name: loss.detach() for name, loss in losses.items()})
        if len(self._pending) < self.every and not due:
            return False
        means = {name: _mean([step[name] for step in self._pending]) for name in self._pending[0]}
        means = mean_over_ranks(means)
        self.rows.append({**position, **{name: float(mean) for name, mean in means.items()}})
        self._pending.clear()
        return True


def _mean(losses: Sequence[torch.Tensor]) -> torch.Tensor:
    return torch.stack(tuple(losses)).double().mean()


def write_log(path: Path, rows: Sequence[Mapping[str, Any]], columns: Sequence[str] = ()) -> None:
    """Rows as CSV, floats with six significant digits (a DVC plot); columns: of a log without rows."""
    write_csv(path, rows, columns, digits=6)
