"""The plan: what stands in which batch."""

from __future__ import annotations

import time
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from csdn.data.rng import generator
from csdn.data.sampler import (
    draw_without_replacement,
    epoch_batches,
    epoch_plan,
    pair_plan,
    pooled_plan,
    sequential_plan,
)
from csdn.runtime.errors import UserError

VISIBLE, INFRARED = 0, 1
seeds = st.integers(0, 2**31 - 1)
# Images (visible, infrared) of each person: from one of each to many, in any mixture.
crowds = st.lists(st.tuples(st.integers(1, 9), st.integers(1, 9)), min_size=2, max_size=24)


def samples(crowd, seed=0):
    """Labels and modalities of a crowd's images, shuffled as a ledger might have them."""
    labels = np.repeat(np.arange(len(crowd)), [visible + infrared for visible, infrared in crowd])
    modalities = np.concatenate([[VISIBLE] * v + [INFRARED] * i for v, i in crowd])
    order = generator(seed, 99).permutation(len(labels))
    return labels[order].astype(np.int64), modalities[order].astype(np.int8)


@pytest.mark.parametrize(
    ("visible", "infrared", "batches"), [(22258, 11909, 696), (2060, 2060, 65), (1, 1, 1), (32, 64, 3)]
)
def test_batches_of_an_epoch_are_the_published_ones(visible, infrared, batches):
    assert epoch_batches(visible, infrared, people=8, images=4) == batches


@settings(max_examples=60, deadline=None)
@given(
    crowd=crowds, people=st.integers(2, 8), images=st.integers(1, 5), seed=seeds, epoch=st.integers(0, 200)
)
def test_each_batch_has_distinct_people_with_images_of_both_modalities_in_one_order(
    crowd, people, images, seed, epoch
):
    people = min(people, len(crowd))
    labels, modalities = samples(crowd, seed)
    plan = epoch_plan(labels, modalities, people, images, seed, epoch)
    assert len(plan) == epoch_batches((modalities == 0).sum(), (modalities == 1).sum(), people, images)
    for row in (plan[step] for step in range(len(plan))):
        assert len(set(row.labels)) == people
        for indices, modality in ((row.visible, VISIBLE), (row.infrared, INFRARED)):
            assert (labels[indices] == row.labels).all()
            assert (modalities[indices] == modality).all()


@settings(max_examples=60, deadline=None)
@given(crowd=crowds, images=st.integers(1, 8), seed=seeds)
def test_images_of_a_person_repeat_only_when_they_must_and_then_evenly(crowd, images, seed):
    labels, modalities = samples(crowd)
    plan = epoch_plan(labels, modalities, 2, images, seed, 0)
    for identities, visible in zip(plan.identities, plan.visible, strict=True):
        for person, indices in zip(identities, visible, strict=True):
            has = crowd[person][VISIBLE]
            times = np.unique(indices, return_counts=True)[1]
            assert len(times) == min(has, images)
            assert set(times) <= {images // has, -(-images // has)} - {0}


@settings(max_examples=40, deadline=None)
@given(crowd=crowds, people=st.integers(1, 8), images=st.integers(1, 4), data=st.data(), seed=seeds)
def test_parts_of_the_workers_are_disjoint_and_together_the_plan(crowd, people, images, data, seed):
    """For any number of workers that divides P x K; a person's images may be those of several workers."""
    divisors = [n for n in range(1, people * images + 1) if people * images % n == 0]
    workers = data.draw(st.sampled_from(divisors))
    plan = epoch_plan(*samples(crowd * 4), people, images, seed, 1)
    parts = [plan.slice(rank, workers)[0] for rank in range(workers)]
    for name in ("labels", "visible", "infrared", "positions"):
        joined = np.concatenate([getattr(part, name) for part in parts])
        np.testing.assert_array_equal(joined, getattr(plan[0], name))
        assert {len(getattr(part, name)) for part in parts} == {people * images // workers}
    np.testing.assert_array_equal(plan[0].positions, np.arange(people * images))
    assert {part.global_images for part in parts} == {people * images}


@settings(max_examples=40, deadline=None)
@given(crowd=st.lists(st.tuples(st.integers(3, 9), st.integers(3, 9)), min_size=12, max_size=24), seed=seeds)
def test_a_plan_is_a_function_of_seed_and_epoch(crowd, seed):
    def identities(seed, epoch):
        return epoch_plan(*samples(crowd), 6, 2, seed, epoch)

    first, again = identities(seed, 3), identities(seed, 3)
    for name in ("identities", "visible", "infrared"):
        np.testing.assert_array_equal(getattr(first, name), getattr(again, name))
    for other in (identities(seed, 4), identities(seed + 1, 3)):
        assert not np.array_equal(first.visible, other.visible)


def test_everybody_and_every_image_is_drawn_equally_often():
    """2,000 batches of 4 out of 10 people: each person in 800 of them, give or take five deviations."""
    drawn = draw_without_replacement(np.full(2000, 10), 4, generator(0, 1))
    times = np.bincount(drawn.ravel(), minlength=10)
    assert (abs(times - 800) < 5 * np.sqrt(2000 * 0.4 * 0.6)).all()


def test_every_pair_of_people_meets_equally_often():
    """Floyd's sets are uniform: each of the 10 pairs out of 5 people in a tenth of 5,000 draws."""
    drawn = np.sort(draw_without_replacement(np.full(5000, 5), 2, generator(0, 2)), axis=1)
    times = np.bincount(drawn[:, 0] * 5 + drawn[:, 1])
    times = times[times > 0]
    assert len(times) == 10
    assert (abs(times - 500) < 5 * np.sqrt(5000 * 0.1 * 0.9)).all()


@pytest.mark.parametrize(
    ("labels", "modalities", "message", "what"),
    [
        ([0, 0, 1], [0, 1, 0], r"1 of 2 people .* no infrared", "a person to train on lacks a modality"),
        ([0, 0, 2, 2], [0, 1, 0, 1], r"1 of 3 people .* no visible", "a person to train on has no image"),
        ([0, 0, 1, 1], [0, 1, 0, 1], r"2 people to train on", "fewer people than a batch, in training"),
        ([], [], "no image to train on", "no image, in training"),
    ],
)
def test_data_that_cannot_be_trained_on_is_refused_by_name(labels, modalities, message, what, fault):
    with pytest.raises(UserError, match=message) as error:
        epoch_plan(np.array(labels, np.int64), np.array(modalities, np.int8), 3, 2, 0, 0)
    fault("training", what, error.value)


@settings(max_examples=60, deadline=None)
@given(crowd=crowds, batch=st.integers(1, 40), seed=seeds)
def test_an_epoch_of_pairs_takes_the_longer_side_once_and_the_shorter_evenly(crowd, batch, seed):
    labels, modalities = samples(crowd)
    steps = pair_plan(labels, modalities, batch, seed, 2)
    pairs = sum(max(person) for person in crowd)
    assert [len(visible) for visible, _ in steps] == chunks(pairs, batch)
    visible, infrared = (np.concatenate(side) for side in zip(*steps, strict=True))
    np.testing.assert_array_equal(labels[visible], labels[infrared])
    for indices, modality in ((visible, VISIBLE), (infrared, INFRARED)):
        assert (modalities[indices] == modality).all()
        times = np.bincount(indices, minlength=len(labels))
        for person, has in enumerate(crowd):
            mine = times[(labels == person) & (modalities == modality)]
            assert set(mine) <= {max(has) // has[modality], -(-max(has) // has[modality])}


def test_pairs_differ_between_epochs():
    crowd = samples([(6, 6)] * 4)
    first, second = (pair_plan(*crowd, 24, 0, epoch)[0] for epoch in (0, 1))
    assert set(zip(*first, strict=True)) != set(zip(*second, strict=True))


@settings(max_examples=30, deadline=None)
@given(count=st.integers(1, 200), batch=st.integers(1, 64), seed=seeds)
def test_pooled_and_sequential_plans_take_each_image_once(count, batch, seed):
    pooled, sequential = pooled_plan(count, batch, seed, 0), sequential_plan(count, batch)
    assert [len(step) for step in pooled] == [len(step) for step in sequential] == chunks(count, batch)
    np.testing.assert_array_equal(np.concatenate(sequential), np.arange(count))
    np.testing.assert_array_equal(np.sort(np.concatenate(pooled)), np.arange(count))


def chunks(count, batch):
    return [batch] * (count // batch) + [count % batch] * (count % batch > 0)


def test_a_plan_of_a_million_images_takes_seconds_and_little_memory():
    """A tenth of the largest index meant for one machine (benchmarks/feed.py has the whole: 30 s, 2 GiB)."""
    people, images = 100_000, 1_000_000
    labels = np.tile(np.arange(people), images // people)
    modalities = np.repeat(np.arange(images // people) % 2, people).astype(np.int8)
    tracemalloc.start()
    began = time.perf_counter()
    plan = epoch_plan(labels, modalities, 8, 4, 0, 0)
    seconds, peak = time.perf_counter() - began, tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(plan) == 15626  # floor(500,000 / 32) + 1
    assert seconds < 3
    assert peak < 200 * 2**20
