"""A training whose numbers are not finite any more ends before it writes them anywhere.

Losses are checked where the log reads them, about twenty times an epoch: a check at each step would make a
GPU wait at each step. The error names the first bad step all the same. Weights and the optimiser's state are
checked before each checkpoint, and weights at the end: the last checkpoint is one from before the divergence.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from csdn.errors import Diverged
from csdn.training.collectives import any_rank


def check_losses(means: Mapping[str, float], about: Mapping[str, Any], advice: str) -> None:
    """Raise Diverged for losses that are not finite; `about` and `advice` as in `diverged`."""
    bad = [f"{name} = {value:g}" for name, value in means.items() if not math.isfinite(value)]
    if bad:
        raise diverged(f"losses that are not finite: {', '.join(bad)}", about, advice)


def check_tensors(tensors: Mapping[str, Tensor], about: Mapping[str, Any], advice: str) -> None:
    """Raise Diverged, in all workers, where a tensor of any worker holds NaN or infinity."""
    bad = [name for name, tensor in tensors.items() if not tensor.isfinite().all()]
    if any_rank(bool(bad)):
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
