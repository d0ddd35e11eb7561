"""The features of every image are extracted once, at its index, and not again after a kill."""

import math

import numpy as np
import pytest
import torch
from feed_data import write_data

from csdn.data import features
from csdn.data.checkpoint_store import CheckpointTimer, open_state
from csdn.data.features import extract_features
from csdn.data.loader import ImageBatches, load_images

IMAGES = torch.arange(7.0)[:, None, None, None].expand(7, 3, 2, 2)
BATCHES = [[3, 4], [0, 2], [1], [6, 5]]


class Killed(Exception):
    pass


class Batches:
    """Batches of IMAGES in some order; a killed run ends after so many of them."""

    def __init__(self, kill_after=None):
        self.kill_after, self.given = kill_after, []

    def __call__(self, start):
        assert start in np.cumsum([0, *map(len, BATCHES)]), "not between two batches"
        done = 0
        for rows in BATCHES:
            done += len(rows)
            if done > start:
                if len(self.given) == self.kill_after:
                    raise Killed
                self.given.append(rows)
                yield np.array(rows), IMAGES[rows], "visible"


def mean_and_first(batches, state, timer=None):
    def batches_from(start):
        for rows, images, _ in batches(start):
            yield rows, {"mean": images.mean(dim=(2, 3)), "first": images[:, 0, 0]}

    return extract_features(batches_from, len(IMAGES), state, lambda *_: None, timer)


def test_features_are_at_the_indices_of_their_images_whatever_the_order_of_batches(tmp_path):
    with open_state("stage", "k", tmp_path) as state:
        found = mean_and_first(Batches(), state)
    np.testing.assert_array_equal(found["mean"], np.arange(7.0)[:, None].repeat(3, axis=1))
    np.testing.assert_array_equal(found["first"], np.arange(7.0)[:, None].repeat(2, axis=1))


def test_what_is_saved_at_once_is_bounded(tmp_path, monkeypatch):
    monkeypatch.setattr(features, "PART_BATCHES", 2)
    with open_state("stage", "k", tmp_path) as state:
        found = mean_and_first(Batches(), state, CheckpointTimer(min_s=math.inf))
        assert sorted(part.name for part in state.folder.glob("after-*")) == ["after-0", "after-2", "after-5"]
        again = mean_and_first(Batches(kill_after=0), state)
    np.testing.assert_array_equal(again["mean"], found["mean"])


@pytest.mark.parametrize("kills", [[0], [1], [2], [3], [1, 1, 1], [2, 0, 1]])
def test_a_killed_run_continues_after_the_last_saved_image(tmp_path, kills):
    given = []
    for kill_after in kills:
        batches = Batches(kill_after)
        with pytest.raises(Killed), open_state("stage", "k", tmp_path) as state:
            mean_and_first(batches, state, CheckpointTimer(overhead=math.inf, min_s=0))
        given += batches.given
    with open_state("stage", "k", tmp_path) as state:
        last = Batches()
        found = mean_and_first(last, state)
        again = mean_and_first(Batches(kill_after=0), state)  # everything was saved, so no batch is requested
    assert given + last.given == BATCHES
    assert set(found) == set(again) == {"mean", "first"}
    for name, values in found.items():
        np.testing.assert_array_equal(values[:, 0], np.arange(7.0))
        np.testing.assert_array_equal(again[name], values)


def test_loading_from_any_batch_on_gives_the_remaining_batches(tmp_path):
    table = write_data(tmp_path)
    batches = ImageBatches(table, tmp_path / "shards", (64, 32), "imagenet", 5)
    whole = list(load_images(batches, 0))
    assert {modality for _, _, modality in whole} == {"visible", "infrared"}
    assert sorted(np.concatenate([rows for rows, _, _ in whole])) == list(range(len(table)))
    done = 0
    for number, (rows, _, _) in enumerate(whole):
        rest = list(load_images(batches, 0, done))
        assert len(rest) == len(whole) - number
        for (rows_a, images_a, modality_a), (rows_b, images_b, modality_b) in zip(
            rest, whole[number:], strict=True
        ):
            assert modality_a == modality_b
            np.testing.assert_array_equal(rows_a, rows_b)
            assert torch.equal(images_a, images_b)
        done += len(rows)
    assert list(load_images(batches, 0, done)) == []
