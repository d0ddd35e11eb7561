"""Thermal images of 16 bits: a warning where few grey levels remain; `ingest.grey16_range` keeps more."""

from __future__ import annotations

import hashlib
import io
import tarfile

import numpy as np
import pytest
from make_images import Project, encoded, jpeg, people_named, write
from PIL import Image

from csdn.data.catalog import SAMPLES_SCHEMA, read_table
from csdn.data.images import decode, grey16
from csdn.ingest.counts import facts_of_cameras, few_levels, grey_levels, summary_lines
from csdn.ingest.pack import extremes, png_of_range
from csdn.ingest.run import content_settings
from csdn.params import IngestParams, load_params, parse_params
from csdn.runtime.errors import UserError

PEOPLE = people_named(8)
RAMP = np.linspace(21_000, 23_550, 16 * 8).round().astype(np.uint16).reshape(16, 8)


@pytest.fixture
def project(tmp_path):
    return Project(tmp_path / "project")


def thermal_drop(root, values=RAMP):
    """Visible JPEGs, and 16-bit images of two thermal cameras: PNGs of `north`, TIFFs of `south`."""
    for n, person in enumerate(PEOPLE):
        write(root / f"visible/north/{person}/0.jpg", jpeg(person))
        write(root / f"infrared/north/{person}/0.png", encoded(values + n))
        write(root / f"infrared/south/{person}/0.tif", encoded(values + 100 + n, "TIFF"))
    write(root / "_SUCCESS", b"")
    return root


def stored(project) -> dict[str, tuple[str, str, bytes]]:
    """Path in the drop -> key, extension and bytes of the image in its shard."""
    found = {}
    for row in read_table(project.data / "samples.parquet", SAMPLES_SCHEMA).to_pylist():
        with tarfile.open(project.data / "shards" / row["shard"]) as tar:
            data = tar.extractfile(f"{row['key']}.{row['extension']}").read()
        found[row["path"]] = row["key"], row["extension"], data
    return found


def test_a_range_becomes_black_to_white():
    """Of 1000..1510, two values are one grey level."""
    values = np.array([[0, 999, 1000, 1001, 1002], [1020, 1509, 1510, 1511, 65535]], np.uint16)
    data = png_of_range(values, 1000, 1510, "a")
    expected = np.array([[0, 0, 0, 1, 1], [10, 255, 255, 255, 255]])
    np.testing.assert_array_equal(decode(data, "png")[..., 0], expected)


def test_the_whole_range_is_the_high_byte_but_for_rounding():
    values = np.arange(0, 65536, 7, dtype=np.uint16).reshape(1, -1)
    found = decode(png_of_range(values, 0, 65535, "a"), "png")[0, :, 0].astype(int)
    assert np.abs(found - (values[0] >> 8)).max() <= 1


def test_the_png_is_not_compressed():
    """So that its bytes, and with them the image's key, are the same with any zlib."""
    assert len(png_of_range(np.zeros((100, 100), np.uint16), 0, 1, "a")) > 100 * 100


def test_two_images_stay_two_where_8_bits_of_them_are_the_same():
    values = np.zeros((2, 2), np.uint16)
    one, again, other = (png_of_range(values + n, 0, 65535, source) for n, source in enumerate("aab"))
    assert one == again != other


def test_outliers_are_left_out_of_an_image_s_extremes():
    values = np.full((100, 100), 500, np.uint16)
    values[:50] = 700
    values[0, :2] = 0, 65535  # dead pixels
    assert extremes(values) == (500, 700)


def test_facts_of_cameras_are_of_all_their_images():
    found = facts_of_cameras([("b", 10, 30), ("a", 5, 6), ("b", 20, 60), ("b", 12, 32)])
    assert found == {
        "a": {"images": 1, "low": 5, "high": 6, "span": 1},
        "b": {"images": 3, "low": 10, "high": 60, "span": 20},
    }


@pytest.mark.parametrize(
    "given, levels",
    [
        ([0, 65535], 2),  # 512 of 65,536 values, 256 in a level, and one more where they begin within one
        ([20_000, 22_048], 64),
        ([20_000, 21_024], 128),
        ([20_000, 20_512], 256),
        ([40_000, 41_000], 1),  # none of the values
        ([0, 20_000], 1),
    ],
)
def test_grey_levels_of_a_range(given, levels):
    facts = {"images": 1, "low": 20_000, "high": 20_512, "span": 512}
    assert abs(grey_levels(facts, given) - levels) <= 1


def test_the_warning_of_a_camera_names_it_its_levels_and_the_range_to_set():
    drops = [
        {
            "gate": {"images": 2, "low": 1000, "high": 3000, "span": 256},
            "yard": {"images": 9, "low": 0, "high": 65_000, "span": 60_000},
        },
        {"gate": {"images": 6, "low": 900, "high": 2000, "span": 1280}},
    ]
    (line,) = few_levels(drops, {})
    # (2 x 256 + 6 x 1280) / 8 = 1024 values, 256 to a level, and where the first level begins
    assert "camera gate: 8 " in line and "about 5 of 256" in line
    assert 'grey16_range: {"gate": [900, 3000]}' in line and "yard" not in line
    assert few_levels(drops, {"gate": [900, 3000]}) == []
    assert few_levels(drops, {"*": [900, 3000], "yard": [0, 65535]}) == []
    (wrong,) = few_levels(drops, {"gate": [40_000, 50_000]})
    assert "[40000, 50000]" in wrong and "about 1 of 256" in wrong


def test_a_range_of_a_camera_without_such_images_is_named():
    (line,) = few_levels([], {"gaet": [0, 1], "*": [0, 1]})
    assert "'gaet'" in line


def test_without_the_parameter_a_drop_is_kept_as_it_came_and_its_cameras_are_warned_of(project, tmp_path):
    drop = thermal_drop(tmp_path / "drop")
    project.add(drop)
    figures = project.ingest()
    for path, (key, _, data) in stored(project).items():
        assert data == (drop / path).read_bytes() and key == hashlib.sha256(data).hexdigest()
    lines = [line for line in summary_lines(figures) if line.startswith("WARNING")]
    assert len(lines) == 2 and '{"north": [21000, 23557]}' in lines[0] and "of 256 grey levels" in lines[0]
    assert '{"south": [21100, 23657]}' in lines[1]


def test_a_camera_s_range_is_stored_in_8_bits_and_changing_it_ingests_again(project, tmp_path):
    drop = thermal_drop(tmp_path / "drop")
    project.add(drop)
    project.ingest()
    before = project.outputs()
    ranges = {"north": [21_000, 23_550], "*": [0, 65_535]}
    figures = project.ingest(grey16_range=ranges)
    assert len(figures["few_grey_levels"]) == 1 and "south" in figures["few_grey_levels"][0]
    for path, (key, extension, data) in stored(project).items():
        assert key == hashlib.sha256(data).hexdigest()
        if path.startswith("infrared/north"):
            n = PEOPLE.index(path.split("/")[2])
            expected = np.minimum(((RAMP.astype(int) - 21_000 + n) + 5) // 10, 255)  # ten values a level
            assert extension == "png" and np.array_equal(decode(data, "png")[..., 2], expected)
            assert len(np.unique(expected)) > 120
        else:
            assert (extension == "png") == path.startswith("infrared/south")
            assert extension == "png" or data == (drop / path).read_bytes()
    project.ingest()  # the parameter is off again
    assert project.outputs() == before


def test_a_png_and_a_tiff_of_the_same_values_are_stored_alike():
    """White that is zero, and a value that the file calls transparent, are seen to before."""
    png, tif = encoded(RAMP), encoded(RAMP, "TIFF", compression="tiff_lzw")
    np.testing.assert_array_equal(grey16(png, "png"), RAMP)
    np.testing.assert_array_equal(grey16(tif, "tif"), RAMP)
    buffer = io.BytesIO()
    Image.fromarray(RAMP).save(buffer, "PNG", transparency=int(RAMP[3, 4]))
    found = grey16(buffer.getvalue(), "png")
    assert found[3, 4] == 0 and (found == RAMP).sum() == RAMP.size - 1


def test_other_images_have_no_16_bits():
    assert grey16(jpeg("a"), "jpg") is None
    assert grey16(encoded(np.zeros((4, 4), np.uint8)), "png") is None
    assert grey16(encoded(np.zeros((4, 4, 3), np.uint8), "TIFF"), "tif") is None


def test_the_parameter_decides_a_drop_s_shards_only_where_it_is_set():
    settings = {"max_bad_fraction": 0.01, "max_pixels": 100, "shard_megabytes": 1, "trust_suggestions": False}
    assert set(content_settings(IngestParams(**settings))) == {"max_pixels", "shard_megabytes"}
    ranges = {"a": [1, 2]}
    assert content_settings(IngestParams(**settings, grey16_range=ranges))["grey16_range"] == ranges


@pytest.mark.parametrize(
    "ranges, named",
    [
        ({"a": [5, 5]}, "grey16_range.a"),
        ({"a": [-1, 5]}, "grey16_range.a"),
        ({"a": [0, 65_536]}, "grey16_range.a"),
        ({"a": [1]}, "grey16_range.a"),
        ({"a": [1.5, 2]}, "grey16_range.a"),
        ({1: [1, 2]}, "grey16_range"),
        ([1, 2], "grey16_range"),
    ],
)
def test_a_wrong_range_is_named(ranges, named):
    raw = load_params().model_dump()
    raw["ingest"]["grey16_range"] = ranges
    with pytest.raises(UserError, match=named):
        parse_params(raw)
