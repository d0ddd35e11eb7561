"""Which of the new drops made the gate reject a run? The run is repeated without some of them, by halves.

A repetition is a trial: a run like the rejected one in which half of the suspects are held. If the gate
promotes it, the harm is in that half; otherwise the search goes on in the other half, and the drop that is
left at last is confirmed by a trial without it alone. A trial that the gate leaves undecided shows nothing,
and clears no drop. One harmful drop of n is found in at most log2(n) + 1 trials, rounded up. Of several, all
are found if they are in the same half each time.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

T = TypeVar("T")
Passes = Callable[[tuple[T, ...]], bool]


def find_harmful(suspects: Sequence[T], passes: Passes[T], budget: int) -> tuple[T, ...]:
    """The fewest suspects without which a trial passed; all suspects if none passed.

    passes(left_out): whether the gate promotes a trial without these. budget: the most trials.

    >>> find_harmful("abcde", lambda left_out: "d" in left_out, budget=4)
    ('d',)
    """
    found = suspects = tuple(suspects)
    for _ in range(budget):
        if found == suspects and len(found) <= 1:
            break
        half = suspects[: (len(suspects) + 1) // 2]
        if passes(half):
            found = suspects = half
        elif suspects == half:  # the last one, and there is harm without it
            break
        else:
            suspects = suspects[len(half) :]
    return found
