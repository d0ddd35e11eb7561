"""Is there enough new camera data to retrain? Count what is new, and compare it with the thresholds."""

from __future__ import annotations

import datetime
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from csdn.ingest.forgotten import NOBODY, Forgotten
from csdn.ingest.identities import SplitRule
from csdn.ingest.ledger import Drop, list_records
from csdn.ingest.sources import open_source

if TYPE_CHECKING:
    from csdn.data.catalog import ImageRecord
    from csdn.params import RetrainParams


@dataclass(frozen=True)
class Arrivals:
    """Images and people that no model was trained on: champion, undecided run, version that was left."""

    images: int = 0
    people: int = 0

    def __str__(self) -> str:
        return f"{_count(self.people, 'new person', 'new people')}, {_count(self.images, 'image')}"


@dataclass(frozen=True)
class Since:
    """The decision since which data is new. after: what was decided, if not the champion's promotion."""

    day: datetime.date
    after: str = ""

    def __str__(self) -> str:
        return self.after or "the champion was chosen"


def people_of(drops: Sequence[Drop], rule: SplitRule, forgotten: Forgotten = NOBODY) -> set[str]:
    """The canonical labels of the people in drops, by their listings. Raises UserError."""
    return _people(_records(drops, forgotten), rule)


def count_arrivals(
    drops: Sequence[Drop], people: Collection[str], rule: SplitRule, forgotten: Forgotten = NOBODY
) -> Arrivals:
    """Count the images of drops and the people in them who are not among `people` (canonical labels).

    Raises UserError if a drop cannot be listed.
    """
    records = _records(drops, forgotten)
    return Arrivals(len(records), len(_people(records, rule) - set(people)))


def _records(drops: Sequence[Drop], forgotten: Forgotten) -> list[ImageRecord]:
    sources = ((open_source(drop.address, drop.layout), drop) for drop in drops)
    return [record for source, drop in sources for record in list_records(source, drop, forgotten)]


def _people(records: Sequence[ImageRecord], rule: SplitRule) -> set[str]:
    return {rule.person(record.person) for record in records} - {""}


def should_retrain(
    new: Arrivals,
    since: Since | None,
    today: datetime.date,
    thresholds: RetrainParams,
    drift: Sequence[str] = (),
) -> tuple[bool, str]:
    """(whether there is enough, the reason in one line); since: None if there is no champion yet.

    Then any new image triggers training. drift: what has changed, a text for each camera; one is enough.
    """
    if not new.images:
        return False, f"nothing is new since {since}" if since and since.after else "nothing is new"
    if since is None:
        return True, f"{new}; there is no champion yet"
    counts = {
        "images": (new.images, _count(new.images, "new image")),
        "people": (new.people, _count(new.people, "new person", "new people")),
        "days": (days := (today - since.day).days, f"{_count(days, 'day')} since {since}"),
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
