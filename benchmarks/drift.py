"""How often `csdn drift` alarms: drops of the same built-in cameras, and drops with one changed camera.

    python benchmarks/drift.py [--drops 100] [--people 10 30]

Run it in the project's folder after `make demo`: the reference is the demo's data, the model its model. Each
drop has people of its own whom no model has seen (but "same people": new images of the demo's people), with
two images by each of the six cameras. A changed drop has one changed camera, another one each time; the other
cameras must not alarm.
"""

from __future__ import annotations

import argparse
import time
from collections import Counter
from collections.abc import Callable, Iterable
from datetime import date
from functools import partial
from pathlib import Path

import numpy as np
from machine import machine
from PIL import Image
from scipy.ndimage import gaussian_filter, rotate

from csdn.curation.drift import Reference, measured
from csdn.data.shards import shards_at
from csdn.evaluation.drift import CameraDrift, Measured, View, compare
from csdn.params import load_params
from csdn.search.embedder import Embedder
from csdn.search.images import GalleryImage
from csdn.synthetic.people import FRESH, person
from csdn.synthetic.rendering import CAMERAS, Camera, encode, render
from csdn.synthetic.sets import SETS

SHOTS, DEMO = 2, SETS["demo"]
VIEWS = {View("infrared" if camera.infrared else "visible", camera.name): camera for camera in CAMERAS}
Change = Callable[[np.ndarray], np.ndarray]


def darker(image: np.ndarray) -> np.ndarray:
    """A third of the light is missing."""
    return (image * 0.67).astype(np.uint8)


def blurred(image: np.ndarray, sigma: float) -> np.ndarray:
    return gaussian_filter(image, (sigma, sigma, 0)[: image.ndim])


def leaning(image: np.ndarray, angle: float) -> np.ndarray:
    """Turned by so many degrees; whole pixels are moved, so the image does not become softer."""
    margin = ((16, 16), (16, 16), (0, 0))[: image.ndim]
    turned = rotate(np.pad(image, margin, mode="reflect"), angle, reshape=False, order=0)
    return turned[16:-16, 16:-16]


def half_size(image: np.ndarray) -> np.ndarray:
    return np.asarray(Image.fromarray(image).reduce(2))


def aside(camera: Camera) -> Camera:
    """The camera looks at the place of another one of its modality, and at people from there."""
    other = {0: 1, 1: 2, 2: 3, 3: 0, 4: 5, 5: 4}[camera.number]
    place = ("yaws", "spread", "horizon", "panel", "surroundings")
    return camera._replace(**{name: getattr(CAMERAS[other], name) for name in place})


# What happens to a camera -> the change of its images, and of its place.
CHANGES: dict[str, tuple[Change, Callable[[Camera], Camera]]] = {
    "darker: 67 % of the light": (darker, lambda camera: camera),
    "darker: 85 % of the light": (lambda image: (image * 0.85).astype(np.uint8), lambda camera: camera),
    "blurred: sigma 1 pixel": (partial(blurred, sigma=1), lambda camera: camera),
    "blurred: sigma 0.6 pixels": (partial(blurred, sigma=0.6), lambda camera: camera),
    "turned: leans by 10 degrees": (partial(leaning, angle=10), lambda camera: camera),
    "turned: leans by 5 degrees": (partial(leaning, angle=5), lambda camera: camera),
    "turned: upside down": (lambda image: image[::-1], lambda camera: camera),
    "turned: aside": (lambda image: image, aside),
    "half the resolution": (half_size, lambda camera: camera),
    "mirrored": (lambda image: image[:, ::-1], lambda camera: camera),
}


class Drops:
    """Drops of people of their own; the images of a drop are measured once for each camera."""

    def __init__(self, reference: Reference, people: int, first: int) -> None:
        self.reference, self.people, self.first = reference, people, first
        self.before = {view: reference.measured(view) for view in VIEWS}

    def measured(
        self, drop: int, view: View, change: Change = lambda image: image, camera: Camera | None = None
    ) -> Measured:
        numbers = range(self.first + drop * self.people, self.first + (drop + 1) * self.people)
        return self._measured(numbers, range(1, SHOTS + 1), view, change, camera or VIEWS[view])

    def known(self, drop: int, view: View) -> Measured:
        """New images of people of the demo."""
        numbers = np.random.default_rng(drop).permutation(np.arange(DEMO.first, DEMO.first + DEMO.people))
        shots = range(10 + SHOTS * drop, 10 + SHOTS * (drop + 1))
        return self._measured(numbers[: self.people].tolist(), shots, view, lambda image: image, VIEWS[view])

    def _measured(
        self, numbers: Iterable[int], shots: Iterable[int], view: View, change: Change, camera: Camera
    ) -> Measured:
        images = []
        for number in numbers:
            for shot in shots:
                read = partial(rendered, number, camera, shot, change)
                facts = f"p{number}", view.camera, view.modality, None, 0
                images.append(GalleryImage(f"p{number}-{shot}.png", *facts, read))
        return measured(images, self.reference.embedder, self.reference.trained, {}, [])

    def compared(self, now: dict[View, Measured]) -> list[CameraDrift]:
        return list(
            compare({view: (self.before.get(view), one, len(one.images)) for view, one in now.items()})
        )


def rendered(number: int, camera: Camera, shot: int, change: Change) -> bytes:
    return encode(np.ascontiguousarray(change(render(person(number), camera, shot))))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--drops", type=int, default=100)
    parser.add_argument("--people", type=int, nargs="+", default=[10, 30], help="of a drop")
    options = parser.parse_args()
    params, data = load_params(), Path("data")
    embedder = Embedder.open("models/embedding", params.evaluation.flip_tta, threads=1)
    reference = Reference(data, shards_at(params, data), embedder)
    print(f"{date.today()}  {machine()}, 1 thread")
    first = FRESH.start
    for people in options.people:
        began = time.process_time()
        show(Drops(reference, people, first), options.drops)
        first += people * options.drops
        print(f"  {time.process_time() - began:.0f} s of CPU time", flush=True)


def show(drops: Drops, count: int) -> None:
    print(f"\n{count} drops of {drops.people} people")
    same = [{view: drops.measured(drop, view) for view in VIEWS} for drop in range(count)]
    found = [drops.compared(one) for one in same]
    alarms = [[camera for camera in cameras if camera.alarm] for cameras in found]
    print(f"  same cameras: alarms in {sum(map(bool, alarms))} of {count}; {named(alarms)}", flush=True)
    known = [drops.compared({view: drops.known(drop, view) for view in VIEWS}) for drop in range(count)]
    alarms = [[camera for camera in cameras if camera.alarm] for cameras in known]
    print(f"  same people: alarms in {sum(map(bool, alarms))} of {count}; {named(alarms)}", flush=True)
    for name, (change, moved) in CHANGES.items():
        changed, others, statistics = 0, 0, []
        for drop, now in enumerate(same):
            view = list(VIEWS)[drop % len(VIEWS)]
            images = drops.measured(drop, view, change, moved(VIEWS[view]))
            alarms = [camera for camera in drops.compared({**now, view: images}) if camera.alarm]
            changed += view in {camera.view for camera in alarms}
            others += bool({camera.view for camera in alarms} - {view})
            statistics.append([camera for camera in alarms if camera.view == view])
        print(
            f"  {name}: found in {changed} of {count}, another camera in {others}; {named(statistics)}",
            flush=True,
        )
    new = View("visible", "new")
    found = [drops.compared({**now, new: now[View("visible", "cam1")]}) for now in same]
    print(
        f"  new: found in {sum(any(one.is_new and one.view == new for one in cameras) for cameras in found)}"
    )


def named(alarms: list[list[CameraDrift]]) -> str:
    """How many drops each statistic alarmed in."""
    counts = Counter(
        name
        for cameras in alarms
        for name in {shift.statistic for camera in cameras for shift in camera.alarms}
    )
    return ", ".join(f"{name} {number}" for name, number in counts.most_common()) or "none"


if __name__ == "__main__":
    main()
