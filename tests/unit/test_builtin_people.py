"""The built-in people: images are pure functions of their names, and colour does not cross the modalities."""

import hashlib
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest

from csdn.synthetic.people import FRESH, PRETRAINING, person
from csdn.synthetic.rendering import CAMERAS, Camera, cameras_of, render
from csdn.synthetic.sets import SETS, BuiltinImage, png
from tools.clip_small.photographers import PHOTOGRAPHERS, three_channels

IMAGES = [BuiltinImage(person=17 + n, camera=CAMERAS[n % 6], number=1 + n // 6) for n in range(12)]

IN_REVERSE = """
import hashlib
from csdn.synthetic.rendering import CAMERAS
from csdn.synthetic.sets import BuiltinImage, png
images = [BuiltinImage(person=17 + n, camera=CAMERAS[n % 6], number=1 + n // 6) for n in range(12)]
print("".join(hashlib.sha256(png(image)).hexdigest() for image in reversed(images)))
"""


def test_an_image_has_the_same_bytes_in_another_process_and_order() -> None:
    here = [hashlib.sha256(png(image)).hexdigest() for image in IMAGES]
    there = subprocess.run([sys.executable, "-c", IN_REVERSE], capture_output=True, text=True, check=True)
    assert there.stdout.strip() == "".join(reversed(here))


def test_images_of_a_person_differ_by_camera_and_number() -> None:
    who = person(3)
    images = [render(who, camera, number).tobytes() for camera in CAMERAS for number in (1, 2, 3)]
    assert len(set(images)) == len(images)


@pytest.mark.parametrize("camera", CAMERAS, ids=lambda camera: camera.name)
def test_images_are_64_by_32_with_as_many_channels_as_the_camera_sees(camera: Camera) -> None:
    image = render(person(5), camera, 1)
    assert image.dtype == np.uint8
    assert image.shape == ((64, 32) if camera.infrared else (64, 32, 3))


@pytest.mark.parametrize("camera", CAMERAS, ids=lambda camera: camera.name)
def test_infrared_sees_materials_and_no_colours_and_visible_the_reverse(camera: Camera) -> None:
    who, other = person(8), person(9)
    recoloured, remade = replace(who, colours=other.colours), replace(who, materials=other.materials)
    image = render(who, camera, 1)
    same_in_other_colours = np.array_equal(image, render(recoloured, camera, 1))
    same_in_other_materials = np.array_equal(image, render(remade, camera, 1))
    assert same_in_other_colours == camera.infrared
    assert same_in_other_materials != camera.infrared


def test_a_material_says_nothing_about_the_colour() -> None:
    people = [person(number) for number in FRESH[:1000]]
    for part in ("upper", "lower", "bag", "hair", "skin"):
        brightness = [np.mean(getattr(who.colours, part)) for who in people]
        reflectance = [getattr(who.materials, part) for who in people]
        assert abs(np.corrcoef(brightness, reflectance)[0, 1]) < 0.11, part  # 3.5 standard errors


def test_a_pattern_shows_in_both_modalities() -> None:
    for number in range(200):
        who = person(number)
        assert np.abs(np.subtract(who.colours.upper, who.colours.second)).max() > 15
        assert abs(who.materials.upper - who.materials.second) >= 45


def test_every_camera_draws_with_a_number_of_its_own() -> None:
    numbers = [camera.number for camera in CAMERAS + PHOTOGRAPHERS]
    assert len(set(numbers)) == len(numbers)


def test_no_set_shares_people_with_another_or_with_pre_training() -> None:
    ranges = [range(people.first, people.first + people.people) for people in SETS.values()]
    for at, one in enumerate([*ranges, PRETRAINING, FRESH]):
        for other in [*ranges, PRETRAINING, FRESH][at + 1 :]:
            assert one.stop <= other.start or other.stop <= one.start


def test_pixels_are_no_better_than_chance_across_the_modalities() -> None:
    """40 people; a guess is right once in 40. The nearest grey image must not be much more often."""
    visible, infrared = (_grey_images(range(300, 340), modality) for modality in (False, True))
    nearest = (infrared @ visible.T).argmax(axis=1) // 4
    right = np.mean(nearest == np.arange(len(infrared)) // 4)
    assert right < 1 / 40 + 4 * np.sqrt(1 / 40 / len(infrared))


def _grey_images(numbers: range, infrared: bool) -> np.ndarray:
    """Four images of each person, as grey values of mean 0 and length 1, [4n, 2048]."""
    shots = [(camera, shot) for camera in cameras_of(infrared) for shot in range(2 if infrared else 1)]
    images = [
        three_channels(render(person(n), *shot)).mean(axis=2).ravel() for n in numbers for shot in shots
    ]
    grey = np.array(images)
    grey -= grey.mean(axis=1, keepdims=True)
    return grey / np.linalg.norm(grey, axis=1, keepdims=True)
