"""Protocol of RegDB: everything of one modality looks for everything of the other; nothing is drawn."""

from __future__ import annotations

from csdn.evaluation.protocols.search import Index, Search, rows_of


def regdb(index: Index) -> list[Search]:
    """Protocol "regdb": both directions on the test people of one trial, nothing excluded.

    The benchmark's ten trials are ten splits of its people: ten models, each with an index of its own.
    """
    visible, infrared = rows_of(index, "visible"), rows_of(index, "infrared")
    return [
        Search("visible_to_infrared", "regdb", visible, (infrared,)),
        Search("infrared_to_visible", "regdb", infrared, (visible,)),
    ]
