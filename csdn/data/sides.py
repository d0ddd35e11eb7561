"""On which side a benchmark's authors put its people; own cameras have no such lists (csdn.data.people)."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import pandas as pd
import pyarrow as pa

from csdn.data.drops import Drop
from csdn.errors import UserError


def given_sides(index: pa.Table, trial: int) -> list[str | None]:
    """Of each image of a drop's index: "train" or "test" in the authors' split number `trial` (from 1).

    "" is an image that is on no list of that split; None one of a drop without lists. A drop of fewer
    splits gives its last.
    """
    lists = index["sides"].to_pylist()
    return [sides[min(trial, len(sides)) - 1] if sides else None for sides in lists]


def check_trial(drops: Sequence[tuple[Drop, pa.Table]], trial: int) -> None:
    """Raise UserError where a drop (with its index) has no split of that number, or no drop has any."""
    counts = {drop: len(index["sides"][0].as_py() or ()) for drop, index in drops if index.num_rows}
    for drop, count in counts.items():
        if 0 < count < trial:
            raise UserError(
                f"data.trial = {trial}: {drop}, layout {drop.layout}, has {count} split{'s' * (count > 1)}; "
                "set it to 1, RegDB alone has ten"
            )
    if trial > 1 and not any(counts.values()):
        raise UserError(f"data.trial = {trial}: no drop in use comes with splits of its authors; set it to 1")


def people_sides(rows: pd.DataFrame, taken: Collection[int]) -> dict[str, str]:
    """Person -> side, for those on a list; rows have person, drop and given (as from `given_sides`).

    The drops in use (positions `taken`) decide before others. Raises UserError where they contradict.
    """
    listed = rows[rows["given"].isin(["train", "test"])]
    in_use = listed["drop"].isin(list(taken))
    sides = listed[in_use].groupby("person")["given"].nunique()
    if torn := sorted(sides.index[sides > 1]):
        raise UserError(
            f"person {torn[0]!r} ({len(torn)} in all) is for training by one drop's lists and for testing by "
            "another's; `csdn drops` lists them: reject one, or correct the file that data.aliases names"
        )
    deciding = listed.assign(later=~in_use).sort_values(["later", "drop"], kind="stable")
    deciding = deciding.drop_duplicates("person")
    return dict(zip(deciding["person"], deciding["given"], strict=True))
