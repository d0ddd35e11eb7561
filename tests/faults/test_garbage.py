"""The drops of garbage are complete drops in the layout `cameras`, and hold what they say."""

from collections import Counter

from garbage import write_noise, write_shuffled

from csdn.ingest.sync import open_drop
from csdn.synthetic.sets import PeopleSet, image_at, images_of, png

PEOPLE = PeopleSet(first=50_001, people=6, visible=1, infrared=2)


def test_shuffled_labels_keep_the_images_and_lose_the_people(tmp_path):
    folder = write_shuffled(tmp_path / "drop", PEOPLE)
    _, images = open_drop(str(folder), "cameras")
    files = sorted(folder.rglob("*.png"))
    assert images == len(files) == 6 * 8
    assert Counter(path.read_bytes() for path in files) == Counter(map(png, images_of(PEOPLE)))
    right = sum(path.name.startswith(path.parent.name) for path in files)
    assert right < 48 / 2  # six people: about 8 of 48 by chance


def test_noise_shows_nobody(tmp_path):
    folder = write_noise(tmp_path / "drop", PEOPLE)
    _, images = open_drop(str(folder), "cameras")
    assert images == 6 * 8
    paths = [path.relative_to(folder).as_posix() for path in folder.rglob("*.png")]
    assert all(image_at(path).label in path for path in paths)
    assert len({(folder / path).read_bytes() for path in paths}) == 48


def test_the_same_call_writes_the_same_drop(tmp_path):
    for write in (write_shuffled, write_noise):
        ids = {
            open_drop(str(write(tmp_path / f"{write.__name__}{n}", PEOPLE)), "cameras")[0].id for n in (0, 1)
        }
        assert len(ids) == 1
