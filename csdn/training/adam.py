"""torch's Adam, without the wait for torch.compile, which nothing here uses."""

from __future__ import annotations

from inspect import unwrap

import torch
from torch.optim import Optimizer


class Adam(torch.optim.Adam):
    """torch's fused Adam, its methods as they are below what tells torch.compile to keep out of them.

    Those wrappers load the compiler with the first call: 3 s on the way to the first step, of every stage and
    of every worker that is started anew. The arithmetic is torch's: same parameters, gradients and state.
    """

    def __init__(self, *args: object, **kwargs: object) -> None:
        super().__init__(*args, fused=True, **kwargs)

    step = torch.no_grad()(unwrap(torch.optim.Adam.step))
    zero_grad = unwrap(Optimizer.zero_grad)
    add_param_group = unwrap(Optimizer.add_param_group)
    state_dict = unwrap(Optimizer.state_dict)
    load_state_dict = unwrap(Optimizer.load_state_dict)
