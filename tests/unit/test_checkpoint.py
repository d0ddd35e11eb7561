"""An optimiser resumes from its saved state to the same bytes."""

import pytest
import torch

from csdn.training.checkpoint import optimizer_tensors, restore_optimizer


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_adam_resumes_to_the_same_bytes(layout):
    def run(steps_before_restart: int) -> torch.Tensor:
        start = torch.linspace(-1, 1, 54).reshape(2, 3, 3, 3)
        weight, optimizer = _adam(start.to(memory_format=layout))
        for step in range(6):
            if step == steps_before_restart:
                tensors = {
                    name: t.clone(memory_format=torch.contiguous_format)  # as a file has them
                    for name, t in optimizer_tensors(optimizer).items()
                }
                weight, optimizer = _adam(weight.detach())
                restore_optimizer(optimizer, tensors)
            optimizer.zero_grad()
            (weight**3).sum().backward()
            optimizer.step()
        return weight.detach()

    assert torch.equal(run(3), run(99))


def _adam(start: torch.Tensor) -> tuple[torch.nn.Parameter, torch.optim.Optimizer]:
    weight = torch.nn.Parameter(start.clone(memory_format=torch.preserve_format))
    return weight, torch.optim.Adam([weight], lr=0.1, weight_decay=0.01, fused=True)
