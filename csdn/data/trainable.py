"""Whether there is something to train on and to test with: asked before hours are spent."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import pyarrow as pa

from csdn.data.drops import SHORT
from csdn.data.merge import HeldDrop
from csdn.data.refusals import refused_in_words
from csdn.errors import UserError


def check_trainable(people: pa.Table, held: Sequence[HeldDrop], minimum_people: int) -> None:
    """Raise UserError naming what the merged data lacks.

    `people` is people.parquet's table; `minimum_people` are the people of a batch (P).
    """
    problem = _problem(people, minimum_people)
    if problem is None:
        return
    notes = [
        f"  held, and so left out: drop {one.drop.id[:SHORT]} ({one.drop.address}), {one.bad} of "
        f"{one.images} images bad: {refused_in_words(one.refused)}; take it as it is with: "
        f"csdn accept {one.drop.id[:SHORT]} --reason '...'"
        for one in held
    ]
    raise UserError("\n".join([problem, *notes]))


def _problem(people: pa.Table, minimum_people: int) -> str | None:
    for modality in ("visible", "infrared"):
        if not sum(people[modality].to_pylist()):
            return (
                f"nothing to train on: there is no usable {modality} image in any drop; "
                "a cross-modality model needs visible and infrared images of the same people"
            )
    status = Counter(people["status"].to_pylist())
    if status["train"] < minimum_people:
        return (
            f"nothing to train on: {status['train']} training people have visible and infrared images, "
            f"a batch needs {minimum_people} (embedding.people); {status['waiting']} more have one modality "
            "only. Add images of them, or lower embedding.people"
        )
    if not status["test"]:
        return (
            "nothing to test with: nobody is a test person (the highest buckets, data.test_percent); "
            "add people or raise data.test_percent"
        )
    return None
