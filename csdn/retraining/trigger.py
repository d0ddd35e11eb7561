"""Is there enough new camera data to retrain? Count what is new, and compare it with the thresholds."""

from __future__ import annotations

import datetime
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from csdn.ingest.forgotten import Forgotten
from csdn.ingest.identities import SplitRule
from csdn.ingest.ledger import Drop, list_records
from csdn.ingest.sources import open_source

if TYPE_CHECKING:
    from csdn.params import RetrainParams


@dataclass(frozen=True)
class Arrivals:
    """New data: the number of images that the champion has not seen, and of people whom it does not know."""

    images: int = 0
    people: int = 0

    def __str__(self) -> str:
        return f"{_count(self.people, 'new person', 'new people')}, {_count(self.images, 'image')}"


def count_arrivals(
    drops: Sequence[Drop], people: Collection[str], rule: SplitRule, forgotten: Forgotten | None = None
) -> Arrivals:
    """Count the images and the new people of drops by their listings.

    people: the canonical labels of those whom the champion knows. Raises UserError if a drop cannot be
    listed.
    """
    records = [
        record
        for drop in drops
        for record in list_records(open_source(drop.address, drop.layout), drop, forgotten)
    ]
    named = {rule.person(record.person) for record in records}
    return Arrivals(len(records), len(named - set(people) - {""}))


def should_retrain(
    new: Arrivals,
    champion: datetime.date | None,
    today: datetime.date,
    thresholds: RetrainParams,
    drift: Sequence[str] = (),
) -> tuple[bool, str]:
    """(whether there is enough, the reason in one line); champion: the day of its promotion.

    If there is no champion yet, any new image triggers training. drift: what has changed, a text for each
    camera; one is enough.
    """
    if not new.images:
        return False, "nothing is new"
    if champion is None:
        return True, f"{new}; there is no champion yet"
    counts = {
        "images": (new.images, _count(new.images, "new image")),
        "people": (new.people, _count(new.people, "new person", "new people")),
        "days": (days := (today - champion).days, f"{_count(days, 'day')} since the champion was chosen"),
    }
    reached = [name for name, (count, _) in counts.items() if count >= getattr(thresholds, name)]
    texts = [
        f"{text} (retrain.{name}: {getattr(thresholds, name)})"
        for name, (_, text) in counts.items()
        if name in reached or not reached
    ]
    if drift and not reached:
        return True, f"drift (retrain.drift): {'; '.join(drift)}"
    return bool(reached), f"{'' if reached else 'not enough yet: '}{', '.join(texts)}"


def _count(number: int, one: str, many: str | None = None) -> str:
    return f"{number} {one if number == 1 else many or one + 's'}"
