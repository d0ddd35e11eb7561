"""Identities that a model has seen, by name or by an image, are excluded from the comparison."""

import pyarrow as pa
import pyarrow.dataset as ds
import pytest

from csdn.data.catalog import PEOPLE_SCHEMA, SAMPLES_SCHEMA, Dataset, to_table
from csdn.retraining.gate_models import (
    SeenData,
    exclude_seen_identities,
    seen_in_training,
    unique_images,
    without_drops,
)


def dataset(*images):
    """Images as (person, split, key, drop), the modality in the key's first letter."""
    names = sorted({person for person, *_ in images})
    samples = [
        {
            "key": key.encode().hex().ljust(64, "0"),
            "extension": "jpg",
            "shard": "a.tar",
            "offset": number,
            "size": 1,
            "person_row": names.index(person),
            "split": split,
            "modality": "visible" if key[0] == "v" else "infrared",
            "camera": "north",
            "path": key,
            "drop": drop,
            "places": None,
        }
        for number, (person, split, key, drop) in enumerate(images)
    ]
    people = [
        {
            "row": row,
            "person": name,
            "bucket": 0,
            "split": "test",
            "status": "test",
            "visible": 1,
            "infrared": 1,
        }
        for row, name in enumerate(names)
    ]
    return Dataset(
        ds.dataset(pa.Table.from_pylist(samples, SAMPLES_SCHEMA)), pa.Table.from_pylist(people, PEOPLE_SCHEMA)
    )


def paths(data):
    return to_table(data.samples)["path"].to_pylist()


def unseen(data, seen, person=lambda name: name):
    return paths(exclude_seen_identities(data, seen, person))


NOTHING = SeenData(frozenset(), pa.chunked_array([], pa.string()))
DATA = dataset(
    ("ana", "test", "v1", "d"),
    ("ana", "test", "i1", "d"),
    ("bo", "test", "v2", "e"),
    ("cy", "train", "v3", "e"),
)


@pytest.mark.parametrize(
    "seen, alias, left",
    [
        (NOTHING, {}, ["v1", "i1", "v2"]),
        (seen_in_training(["ana"], dataset()), {}, ["v2"]),
        (seen_in_training(["anna"], dataset()), {}, ["v1", "i1", "v2"]),
        (seen_in_training(["anna"], dataset()), {"anna": "ana"}, ["v2"]),  # the alias came after the training
        (seen_in_training(["ana"], dataset()), {"ana": "anna"}, ["v2"]),  # then's data, today's name
        (seen_in_training([], dataset(("x", "train", "i1", "d"))), {}, ["v2"]),  # all images of her, by one
        (seen_in_training([], dataset(("x", "test", "i1", "d"))), {}, ["v1", "i1", "v2"]),
        (seen_in_training(["ana"], dataset()) | seen_in_training(["bo"], dataset()), {}, []),
    ],
)
def test_people_whom_a_model_has_seen_are_excluded(seen, alias, left):
    assert unseen(DATA, seen, lambda name: alias.get(name, name)) == left


def test_drops_are_left_out_by_id():
    assert paths(without_drops(DATA, ["d"])) == ["v2", "v3"]
    assert to_table(without_drops(DATA, []).samples) == to_table(DATA.samples)


def test_unique_images_have_each_image_once():
    other = dataset(("bo", "test", "v2", "e"), ("new", "test", "i9", "f"), ("ana", "test", "v1", "d"))
    table, (first, second) = unique_images([DATA, other])
    assert [bytes.fromhex(table.key(n))[:2] for n in range(4)] == [b"v1", b"i1", b"v2", b"i9"]
    assert table.offset.tolist() == [0, 1, 2, 1]
    assert (first.tolist(), second.tolist()) == ([0, 1, 2], [2, 3, 0])


def test_the_same_bytes_in_the_other_modality_are_another_image():
    images = dataset(("ana", "test", "v1", "d"))
    column = SAMPLES_SCHEMA.get_field_index("modality")
    samples = to_table(images.samples).set_column(column, "modality", pa.array(["infrared"]))
    other = Dataset(ds.dataset(samples), images.people)
    assert len(unique_images([images, other])[0]) == 2


def test_images_that_a_benchmark_has_twice_are_embedded_once():
    twice = dataset(("ana", "test", "v1", "d"), ("ana", "test", "v1", "d"))
    table, (rows,) = unique_images([twice])
    assert (len(table), rows.tolist()) == (1, [0, 0])
