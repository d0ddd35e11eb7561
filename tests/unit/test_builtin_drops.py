"""Built-in people as drops: a listing costs nothing, and the folder written is the drop listed."""

from pathlib import Path

import pytest

from csdn.data.catalog import ImageRecord
from csdn.ingest.identities import SplitRule
from csdn.runtime.errors import UserError
from csdn.synthetic import sets
from csdn.synthetic.sets import SETS, BuiltinSource, image_at, images_of, write_images


@pytest.fixture(scope="module")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("drops") / "tiny"
    write_images("tiny", folder)
    return folder


def test_the_folder_written_holds_exactly_the_listed_images_byte_for_byte(tiny_folder: Path) -> None:
    source = BuiltinSource("builtin:tiny")
    files = {
        path.relative_to(tiny_folder).as_posix(): path for path in tiny_folder.rglob("*") if path.is_file()
    }
    assert files.pop("_SUCCESS").read_bytes() == b""
    records = source.listing()
    assert [record.path for record in records] == sorted(files)
    assert all(source.read(record) == files[record.path].read_bytes() for record in records)


def test_the_folder_is_a_drop_of_the_layout_cameras_with_the_same_facts(tiny_folder: Path) -> None:
    from csdn.ingest.sources.cameras import CameraSource

    def facts(record: ImageRecord) -> tuple[str, ...]:
        return record.path, record.person, record.modality, record.camera

    folder = CameraSource(str(tiny_folder))
    assert list(map(facts, folder.listing())) == list(map(facts, BuiltinSource("builtin:tiny").listing()))
    assert folder.complete
    assert not folder.refused


def test_demo_has_200_people_with_8_images_in_each_modality() -> None:
    people: dict[tuple[str, str], int] = {}
    for record in BuiltinSource("builtin:demo").listing():
        people[record.person, record.modality] = people.get((record.person, record.modality), 0) + 1
    assert len(people) == 2 * 200
    assert set(people.values()) == {8}


def test_gate_has_150_test_people_and_more_brings_new_people_and_new_images_of_known_ones() -> None:
    identity = SplitRule("csdn", test_percent=60)
    first, more = (BuiltinSource(f"builtin:{name}").listing() for name in ("gate", "gate-more"))
    before, after = ({record.person for record in drop} for drop in (first, more))
    assert sum(identity.split(identity.bucket(person)) == "test" for person in before) == 150
    assert len(before) == 240
    assert len(after & before) == len(after - before) == 80
    assert not {record.path for record in first} & {record.path for record in more}


def test_listing_renders_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sets, "render", lambda *_: pytest.fail("rendered"))
    records = BuiltinSource("builtin:demo").listing()
    assert [record.path for record in records] == sorted(record.path for record in records)
    assert len({record.etag for record in records}) == len(records) == 3200


def test_another_renderer_gives_other_etags(monkeypatch: pytest.MonkeyPatch) -> None:
    before = {record.etag for record in BuiltinSource("builtin:tiny").listing()}
    monkeypatch.setattr(sets, "RENDERER_VERSION", sets.RENDERER_VERSION + 1)
    assert before.isdisjoint(record.etag for record in BuiltinSource("builtin:tiny").listing())


@pytest.mark.parametrize("name", SETS)
def test_a_path_names_its_image(name: str) -> None:
    assert all(image_at(image.path) == image for image in images_of(SETS[name]))


@pytest.mark.parametrize(
    "path",
    [
        "visible/cam5/p0001/0001.png",  # cam5 is infrared
        "visible/cam9/p0001/0001.png",
        "visible/cam1/p0001/0001.jpg",
        "visible/cam1/p00001/0001.png",
        "../visible/cam1/p0001/0001.png",
    ],
)
def test_a_path_that_names_no_image_is_refused(path: str) -> None:
    with pytest.raises(ValueError, match="no path of a built-in image"):
        image_at(path)


@pytest.mark.parametrize(
    "address, what",
    [
        ("builtin:nobody", "built-in people that there are not"),
        ("demo", "built-in people without builtin: before their name"),
        ("builtin:", "built-in people without a name"),
    ],
)
def test_an_unknown_set_is_an_error_that_says_what_there_is(address: str, what: str, fault) -> None:
    with pytest.raises(UserError, match="demo") as error:
        BuiltinSource(address)
    fault("drops and images", what, error.value)


def test_a_folder_that_holds_something_is_left_as_it_is(tmp_path: Path, fault) -> None:
    (tmp_path / "mine.txt").write_text("precious")
    with pytest.raises(UserError, match="not an empty folder") as error:
        write_images("tiny", tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]
    fault("drops and images", "csdn demo-images into a folder that holds something", error.value)


def test_an_interrupted_writing_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written = iter(range(20))

    def stopped(image: sets.BuiltinImage) -> bytes:
        if next(written) == 19:
            raise KeyboardInterrupt
        return b"image"

    monkeypatch.setattr(sets, "png", stopped)
    with pytest.raises(KeyboardInterrupt):
        write_images("tiny", tmp_path / "out")
    assert list(tmp_path.iterdir()) == []
