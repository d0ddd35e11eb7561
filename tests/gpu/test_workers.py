"""Several workers on GPUs: norms and distances on one card, training over NCCL on two, Ray with a card.

Skipped without a card.
"""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import ray_work
import torch
import torch.distributed as dist
import worker_loop
from torch import nn

from csdn.losses import euclidean, wrt_loss_of_anchors
from csdn.training.distributed import synchronise_batch_norms

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no GPU")


@pytest.fixture
def one_worker(tmp_path):
    """A process group of this process alone."""
    dist.init_process_group("nccl", init_method=f"file://{tmp_path}/meeting", rank=0, world_size=1)
    yield
    torch.cuda.set_sync_debug_mode("default")
    dist.destroy_process_group()


def after_a_step(norm, images, upstream):
    """Output, gradients and statistics of a norm [16 channels] after a step."""
    images = images.clone().requires_grad_()
    made = norm(images)
    made.backward(upstream)
    return made, images.grad, norm.weight.grad, norm.bias.grad, norm.running_mean, norm.running_var


@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 2e-2)])
def test_a_synchronised_norm_is_torch_s_of_one_process_and_never_waits(one_worker, dtype, layout, tolerance):
    images, upstream = (
        torch.randn(6, 16, 9, 5, device="cuda", dtype=dtype).contiguous(memory_format=layout)
        for _ in range(2)
    )
    plain = nn.Sequential(nn.BatchNorm2d(16)).cuda()
    synced = synchronise_batch_norms(nn.Sequential(nn.BatchNorm2d(16)).cuda())
    expected = after_a_step(plain[0], images, upstream)
    after_a_step(synced[0], images, upstream)  # loads the kernels
    synced[0].reset_running_stats()
    synced.zero_grad()
    torch.cuda.set_sync_debug_mode("error")
    found = after_a_step(synced[0], images, upstream)
    torch.cuda.set_sync_debug_mode("default")
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=tolerance, atol=tolerance)


def test_distances_and_their_gradient_are_those_of_a_cpu():
    a, upstream = 10 + torch.randn(8, 64), torch.randn(8, 8)
    a[1], found = a[0], []
    for device in ("cpu", "cuda"):
        rows = a.to(device).requires_grad_()
        distances = euclidean(rows, rows)
        (gradient,) = torch.autograd.grad(distances, rows, upstream.to(device))
        found.append((distances.cpu(), gradient.cpu()))
    torch.testing.assert_close(*found, rtol=1e-4, atol=1e-4)


def test_the_triplet_loss_of_a_worker_needs_memory_for_its_rows_of_pairs():
    """The 96 rows of a worker in a batch of 12,288: 201 MB of features and their gradient, and the pairs."""
    own, rows, width = 96, 12_288, 2048
    features = torch.randn(rows, width, device="cuda", requires_grad=True)
    labels = torch.arange(rows // 12, device="cuda").repeat(12)
    torch.cuda.reset_peak_memory_stats()
    wrt_loss_of_anchors(features[:own], labels[:own], features, labels).backward()
    assert torch.cuda.max_memory_allocated() < 6 * features.nbytes + 20 * own * rows * 4


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_two_workers_over_nccl_train_what_one_does(tmp_path):
    rows = {}
    for size in (1, 2):
        command = [sys.executable, worker_loop.__file__, str(tmp_path)]
        workers = [subprocess.Popen([*command, str(rank), str(size), "cuda"]) for rank in range(size)]
        try:
            assert [worker.wait(timeout=300) for worker in workers] == [0] * size
        finally:
            for worker in workers:
                worker.kill()
        rows[size] = json.loads((tmp_path / f"float64-{size}.json").read_text())
    for expected, found in zip(rows[1], rows[2], strict=True):
        assert found == pytest.approx(expected, rel=1e-6)


def test_a_worker_of_ray_trains_on_a_card(tmp_path):
    from csdn.cluster.train import train_on_ray

    images = ray_work.write_images(tmp_path / "images")
    plain = ray_work.make_work(images)
    ray_work.train_plainly(plain, ray_work.make_state(tmp_path / "plain"))
    work, params = ray_work.make_work(images), ray_work.make_params(1, use_gpu=True)
    train_on_ray(params, work, ray_work.make_state(tmp_path / "state"), lambda *_: None)
    assert ray_work.difference(plain.model, work.model) < 1e-2
