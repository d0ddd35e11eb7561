"""The data loader: the rows of a plan as tensors, whichever process makes them."""

from __future__ import annotations

import os
import re
import signal
from functools import partial

import numpy as np
import pytest
import simplejpeg
import torch
from feed_data import train_source, write_data

from csdn.data.augment import resize
from csdn.data.images import decode
from csdn.data.loader import BatchLoader, TrainLoader, test_loader
from csdn.data.shards import ShardReader
from csdn.data.views import normalised
from csdn.runtime.errors import Diverged, ServiceUnavailable, UserError

SIZE = (64, 32)
VIEWS = ("visible_view1", "visible_view2", "infrared")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    root = tmp_path_factory.mktemp("data")
    return write_data(root), root / "shards"


def loader(data, processes=0, seed=0):
    table, shards = data
    return TrainLoader(train_source(table, shards, seed=seed), processes)


def assert_same(one, other):
    assert (one.epoch, one.step) == (other.epoch, other.step)
    for name in (*VIEWS, "labels"):
        assert torch.equal(getattr(one, name), getattr(other, name)), name


def test_an_epoch_is_the_plan_s_rows_in_their_order(data):
    made = loader(data)
    plan = made.source.plan(1)
    batches = list(made.epoch(1))
    assert [(batch.epoch, batch.step) for batch in batches] == [(1, step) for step in range(len(plan))]
    assert len(batches) == made.steps_per_epoch == 7  # floor(24 / (2 * 2)) + 1
    for batch, identities in zip(batches, plan.identities, strict=True):
        assert batch.labels.tolist() == np.repeat(identities, 2).tolist()
        for name in VIEWS:
            view = getattr(batch, name)
            assert view.shape == (4, 3, *SIZE) and view.dtype == torch.float32


@pytest.mark.parametrize("processes", [1, 2])
def test_any_number_of_processes_gives_the_same_bits_epoch_after_epoch(data, processes):
    alone, shared = loader(data), loader(data, processes)
    for epoch in (0, 1):
        for one, other in zip(alone.epoch(epoch), shared.epoch(epoch), strict=True):
            assert_same(one, other)


def test_a_loader_started_at_row_n_continues_as_if_it_had_not_stopped(data):
    made = loader(data, processes=1)
    whole = list(made.epoch(2))
    for one, other in zip(whole[3:], made.epoch(2, start=3), strict=True):
        assert_same(one, other)


def test_an_epoch_that_is_not_read_to_its_end_leaves_nothing_in_the_next(data):
    alone, made = loader(data), loader(data, processes=2)
    for epoch in range(4):
        batches = made.epoch(epoch)
        next(batches)
        batches.close()
    for one, other in zip(alone.epoch(9), made.epoch(9), strict=True):
        assert_same(one, other)


def test_batches_that_are_kept_keep_their_values(data):
    made = loader(data, processes=1)
    kept = list(made.epoch(0))
    copies = [batch.infrared.clone() for batch in kept]
    list(made.epoch(1))
    assert all(torch.equal(batch.infrared, copy) for batch, copy in zip(kept, copies, strict=True))


def test_two_draws_of_an_image_differ_and_so_do_the_views(data):
    made = loader(data)
    first, second = next(made.epoch(0)), next(made.epoch(1))
    assert not torch.equal(first.visible_view1, first.visible_view2)
    assert not torch.equal(first.infrared, second.infrared)
    assert not torch.equal(first.infrared, next(loader(data, seed=1).epoch(0)).infrared)


def test_a_visible_image_is_decoded_once_for_its_two_views(data, monkeypatch):
    decoded = []
    monkeypatch.setattr("csdn.data.batch.decode", lambda *image: decoded.append(1) or decode(*image))
    next(loader(data).epoch(0))
    assert len(decoded) == 2 * 2 * 2  # people, images, modalities


def test_the_loader_does_not_touch_torch_s_own_randomness(data):
    torch.manual_seed(0)
    before = torch.get_rng_state()
    list(loader(data, processes=1).epoch(0))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("processes", [0, 2])
def test_test_images_come_once_each_in_order_without_augmentation(data, processes):
    table, shards = data
    indices = table.of("infrared")
    got = list(test_loader(table, indices, shards, SIZE, "clip", 5, processes))
    assert [len(part) for part, _ in got] == [5, 5, 5, 3]
    assert np.concatenate([part for part, _ in got]).tolist() == indices.tolist()
    reader = ShardReader(shards)
    last = indices[-1]
    jpeg = reader.read(table.shard_names[table.shard[last]], int(table.offset[last]), int(table.size[last]))
    image = resize(simplejpeg.decode_jpeg(jpeg), SIZE)
    assert torch.equal(got[-1][1][-1], normalised(torch.tensor(image).permute(2, 0, 1), "clip"))


@pytest.mark.parametrize("processes", [0, 1])
def test_an_image_altered_after_ingest_is_named_and_never_trained_on(tmp_path, processes, fault):
    """One bit of its pixels: it still decodes."""
    table = write_data(tmp_path)
    shard = tmp_path / "shards" / table.shard_names[table.shard[0]]
    content = bytearray(shard.read_bytes())
    image = slice(table.offset[0], table.offset[0] + table.size[0])
    content[image.stop - 40] ^= 1
    decode(bytes(content[image]), "jpg")
    shard.write_bytes(content)
    made = loader((table, tmp_path / "shards"), processes)
    first = next(epoch for epoch in range(9) if 0 in made.source.plan(epoch).infrared)
    with pytest.raises(UserError, match="is not what ingest put there") as error:
        list(made.epoch(first))
    without_place = re.sub(r"byte \d+", "byte N", str(error.value))
    fault("shards and index", "one bit of an image was altered in a shard after ingest", without_place)


@pytest.mark.slow  # death is looked for every five seconds
def test_a_killed_process_is_an_error_that_says_so(data, fault):
    made = loader(data, processes=1)
    batches = made.epoch(0)
    next(batches)
    os.kill(made.batches.loader._iterator._workers[0].pid, signal.SIGKILL)
    with pytest.raises(UserError, match="a data loader process was killed") as error:
        list(batches)
    fault("processes", "a data loader process is killed (SIGKILL)", error.value)


def too_large(row):
    """A batch with more bytes than any memory."""
    return np.empty((2**40, 2**10))


@pytest.mark.parametrize("processes", [0, 1])
def test_an_image_that_takes_more_memory_than_there_is_is_an_error_that_says_so(processes, fault):
    with pytest.raises(UserError, match="memory ran out") as error:
        next(BatchLoader(too_large, processes)([0]))
    fault("disk and memory", "memory runs out in a data loader process", error.value)


def failing(error, cause, row):
    """A batch that cannot be made; `cause` is an argument, as a pickled error has none."""
    raise error from cause


@pytest.mark.parametrize("processes", [0, 1])
@pytest.mark.parametrize(
    ("error", "cause", "kind"),
    [
        (UserError("x"), None, UserError),
        (ServiceUnavailable("x"), None, ServiceUnavailable),
        (UserError("x"), ServiceUnavailable("away"), ServiceUnavailable),
        (Diverged("x"), None, Diverged),
    ],
)
def test_an_error_keeps_its_kind_on_its_way_from_a_process(error, cause, kind, processes):
    """Prefect tries again what was unavailable, and a retraining that diverged has no model."""
    with pytest.raises(UserError, match="x") as raised:
        next(BatchLoader(partial(failing, error, cause), processes)([0]))
    assert type(raised.value) is kind


def test_people_without_a_modality_are_refused_before_any_work(data, fault):
    table, shards = data
    with pytest.raises(UserError, match="6 people to train on") as error:
        TrainLoader(train_source(table, shards, people=7), 2).epoch(0)
    fault("training", "a batch of more people than there are", error.value)
