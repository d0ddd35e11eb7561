"""Stage 2's loop in one of several processes that torch.distributed joins, over gloo or NCCL."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import torch
import torch.distributed as dist
from safetensors.torch import save_file
from small_network import SMALL

from csdn.data.checkpoint_store import CheckpointStore
from csdn.data.loader import TrainBatch
from csdn.model import CSDN
from csdn.params import EmbeddingParams
from csdn.training.checkpoint import LocalState
from csdn.training.embedding import train_embedding

IDENTITIES, PEOPLE, IMAGES, SIZE = 20, 4, 4, (64, 32)
STEPS, EPOCHS = 12, 2
RATES = {torch.float64: 7e-4, torch.float32: 3e-5}


class Slices:
    """Each batch is a function of (epoch, step); this process takes its images of it."""

    steps_per_epoch = STEPS

    def __init__(self, rank: int, size: int, dtype: torch.dtype, device: str = "cpu") -> None:
        self.rank, self.size, self.dtype, self.device = rank, size, dtype, device
        self.colours = torch.randn(IDENTITIES, 3, 1, 1, generator=torch.Generator().manual_seed(5))

    def epoch(self, epoch: int, start: int = 0) -> Iterator[TrainBatch]:
        for step in range(start, STEPS):
            draws = torch.Generator().manual_seed(1000 * epoch + step)
            people = torch.randperm(IDENTITIES, generator=draws)[:PEOPLE].repeat_interleave(IMAGES)
            shape = (len(people), 3, *SIZE)
            views = [torch.randn(shape, generator=draws) + self.colours[people] for _ in range(3)]
            mine = [view.to(self.device, self.dtype).chunk(self.size)[self.rank] for view in views]
            labels = people.to(self.device).chunk(self.size)[self.rank]
            yield TrainBatch(*mine, labels, epoch, step)


def settings(dtype: torch.dtype, people: int = PEOPLE, images: int = IMAGES) -> EmbeddingParams:
    rate = RATES[dtype]
    return EmbeddingParams(
        epochs=EPOCHS,
        identities_per_batch=people,
        images_per_identity=images,
        padding=0,
        learning_rate=rate,
        head_learning_rate=2 * rate,
        weight_decay=5e-4,
        schedule={
            "kind": "cosine",
            "lr_update": "step",
            "warmup_epochs": 0.5,
            "warmup_factor": 0.01,
            "gamma": 0.1,
        },
        losses={"identity": 1.0, "msel": 1.0, "triplet": 0.15, "hse_visible": 0.05, "hse_infrared": 0.1},
    )


def train(out: Path, rank: int, size: int, dtype: torch.dtype, device: str = "cpu") -> None:
    """Train, and write weights and losses of the first process to `out`."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    config = replace(SMALL, identities=IDENTITIES)
    model = CSDN(config).channels_last().to(device, dtype)
    text = torch.randn(IDENTITIES, config.embed_dim, generator=torch.Generator().manual_seed(1))
    text = text.to(device, dtype)
    state = out / f"state-{dtype}-{size}-{rank}".replace("torch.", "")
    feed = Slices(rank, size, dtype, device)
    with LocalState(CheckpointStore(state)) as saves:
        rows = train_embedding(model, text, feed, settings(dtype), saves, lambda *_: None)
    if rank == 0:
        name = f"{dtype}-{size}".removeprefix("torch.")
        save_file(
            {k: v.cpu().contiguous() for k, v in model.state_dict().items()}, out / f"{name}.safetensors"
        )
        (out / f"{name}.json").write_text(json.dumps(rows))


if __name__ == "__main__":
    folder, rank, size = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    device = f"cuda:{rank}" if sys.argv[4:] == ["cuda"] else "cpu"
    if device != "cpu":
        torch.cuda.set_device(rank)
    if size > 1:
        meeting = f"file://{folder / f'meeting-{size}'}"
        backend = "gloo" if device == "cpu" else "nccl"
        dist.init_process_group(backend, init_method=meeting, rank=rank, world_size=size)
    for kind in RATES:
        train(folder, rank, size, kind, device)
