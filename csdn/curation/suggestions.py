"""`csdn suggest`: people for the images of a drop that have none, as a manifest to correct and a page.

The images are embedded and grouped (csdn.curation.grouping) beside the known people. The manifest marks
them as unconfirmed, and ingest refuses unconfirmed suggestions (csdn.ingest.pack).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined

from csdn.curation.grouping import Cut, Images, Relation, grouped, mean_features
from csdn.curation.known_people import KnownPeople, TestImages
from csdn.data.catalog import MODALITIES
from csdn.data.outputs import write_csv
from csdn.ingest.sources.cameras import OPTIONAL, REQUIRED
from csdn.runtime.files import atomic_write
from csdn.search.build import embedded
from csdn.search.embedder import Embedder
from csdn.search.images import GalleryImage, Grey16Ranges
from csdn.search.results import picture

SHOWN = 10  # images of a person on the page
COLUMNS = (*REQUIRED, *OPTIONAL)
Report = Callable[[int, int], None]  # done, total


@dataclass(frozen=True)
class Suggested:
    """An image with the person that is proposed ("": none), and how alike the person's other images are.

    score: the mean cosine of it and the proposed person's images of its modality in the drop, it included.
    known: the number of the known person, -1 for a new one.
    """

    image: GalleryImage
    person: str
    known: int
    score: float


@dataclass(frozen=True)
class Suggestions:
    """The images of a drop without a person, and the thresholds by which they were grouped."""

    images: list[Suggested]
    cuts: Mapping[Relation, Cut]
    known: KnownPeople
    precision: float

    def people(self) -> dict[str, list[Suggested]]:
        """The proposed people: known ones by name, then new ones; of each, the least alike images first."""
        found: dict[str, list[Suggested]] = {}
        for image in sorted(self.images, key=lambda one: (one.known < 0, one.person, one.score)):
            if image.person:
                found.setdefault(image.person, []).append(image)
        return found


def unlabelled_features(
    images: Sequence[GalleryImage], embedder: Embedder, grey16: Grey16Ranges, report: Report
) -> tuple[list[GalleryImage], np.ndarray, str, list[tuple[str, str]]]:
    """Good images in the order of camera, time and path; their features; a hash of them all; the bad ones."""
    refused, features, names, hashes = list[tuple[str, str]](), [], list[str](), []
    for batch, rows in embedded(images, embedder, grey16, refused):
        features.append(batch)
        names += rows["source"].to_pylist()
        hashes += rows["sha256"].to_pylist()
        report(len(names) + len(refused), len(images))
    if not names:
        return [], np.zeros((0, embedder.dimension), np.float32), "", refused
    by_source = {image.source: image for image in images}
    good = [by_source[name] for name in names]
    order = sorted(range(len(good)), key=lambda n: _place(good[n]))
    digest = hashlib.sha256(b"".join(sorted(hashes))).hexdigest()
    return [good[n] for n in order], np.concatenate(features)[order], digest, refused


def _place(image: GalleryImage) -> tuple[Any, ...]:
    return image.modality, image.camera, image.time or 0, image.source


def suggest(
    images: Sequence[GalleryImage],
    features: np.ndarray,
    drop: str,
    known: KnownPeople,
    test: TestImages,
    precision: float,
) -> Suggestions:
    """Propose people for images, which are in the order of `unlabelled_features`.

    drop: hex digits that new people's names begin with, since a name that another drop has too would make
    one person of two. precision: the share of the proposed pairs and names that is to be right, 0..1.
    """
    modality = np.array([MODALITIES.index(image.modality) for image in images], np.int8)
    _, camera = np.unique([image.camera for image in images], return_inverse=True)
    groups = grouped(Images(features, modality, camera), known.means, test.images, test.people, precision)
    names = _names(groups.group, groups.person, known.names, drop)
    _, members = np.unique(groups.group * len(MODALITIES) + modality, return_inverse=True)
    scores = np.sum(features * mean_features(features, members)[members], axis=1)
    found = zip(images, names, groups.person.tolist(), scores.tolist(), strict=True)
    return Suggestions([Suggested(*one) for one in found], groups.cuts, known, precision)


def _names(group: np.ndarray, person: np.ndarray, known: Sequence[str], drop: str) -> list[str]:
    """The proposed names; of new people the largest group is the first, and a single image has none."""
    new, counts = np.unique(group[person < 0], return_counts=True)
    order = [n for n in np.lexsort((new, -counts)) if counts[n] > 1]
    called = {int(new[n]): f"new-{drop[:6]}-{number:04d}" for number, n in enumerate(order, 1)}
    return [
        known[of] if of >= 0 else called.get(of_group, "")
        for of, of_group in zip(person.tolist(), group.tolist(), strict=True)
    ]


# The manifest: as any manifest, with the column `confirmed`.


def write_manifest(path: Path, root: str, suggestions: Suggestions, labelled: Sequence[GalleryImage]) -> None:
    """Write the suggestions, "no" in `confirmed`, and the drop's labelled images, which need none.

    root: the address below which the images are. The rows of a person are together, those without a
    proposal follow.
    """
    rows = [(image.image, image.person, "no") for images in suggestions.people().values() for image in images]
    rows += [(image.image, "", "no") for image in suggestions.images if not image.person]
    rows += [(image, image.person, "yes") for image in labelled]
    with atomic_write(path) as temporary:
        write_csv(temporary, [_row(*row, root) for row in rows], COLUMNS)


def _row(image: GalleryImage, person: str, confirmed: str, root: str) -> dict[str, str]:
    at = "" if image.time is None else datetime.fromtimestamp(image.time, UTC).isoformat()
    path = image.source.removeprefix(root.rstrip("/") + "/")
    return dict(zip(COLUMNS, (path, person, image.modality, image.camera, at, confirmed), strict=True))


# In words, and as a page.


def in_words(suggestions: Suggestions) -> list[str]:
    """Lines for a terminal: what was proposed, and by which thresholds."""
    total, people = len(suggestions.images), suggestions.people()
    known = [images for images in people.values() if images[0].known >= 0]
    new = [images for images in people.values() if images[0].known < 0]
    lines = [
        f"{total} images without a person: {sum(map(len, known))} of {len(known)} known people, "
        f"{sum(map(len, new))} of {len(new)} new people, "
        f"{total - sum(map(len, people.values()))} without a proposal"
    ]
    for relation, cut in suggestions.cuts.items():
        words = cut_in_words(cut, "names" if relation[0] == "known" else "pairs")
        lines.append(f"  {relation_in_words(relation)}: {words}")
    return lines


def relation_in_words(relation: Relation) -> str:
    """Which images a threshold compares."""
    kind, *of = relation
    return {
        "camera": "{} images of one camera",
        "modality": "{} images of all cameras",
        "cross": "visible and infrared images",
        "known": "{} images and {} images of known people",
    }[kind].format(*of)


def cut_in_words(cut: Cut, what: str) -> str:
    """The threshold and what it adds, or that there is none."""
    if cut.threshold is None:
        return f"nothing is proposed: no threshold has the wanted share of right {what}"
    right = f"about {100 * cut.right:.0f} % right"
    return f"from a score of {cut.threshold:.3f} on {cut.added} {what} are proposed, {right}"


def write_page(path: Path, suggestions: Suggestions, drop: str, manifest: str) -> None:
    """One HTML file with all pictures in it; it loads nothing from elsewhere."""
    environment = Environment(
        loader=PackageLoader("csdn.curation"), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    shown = [
        {
            "name": name,
            "known": _known_pictures(suggestions.known, images[0].known),
            "is_known": images[0].known >= 0,
            "count": len(images),
            "pictures": [(_picture(one), one) for one in images[:SHOWN]],
        }
        for name, images in suggestions.people().items()
    ]
    page = environment.get_template("suggestions.html.j2").render(
        drop=drop, manifest=manifest, shown=shown, lines=in_words(suggestions), wanted=suggestions.precision
    )
    with atomic_write(path) as temporary:
        temporary.write_text(page, encoding="utf-8")


def _picture(one: Suggested) -> Any:
    return picture(lambda source: one.image.read(), one.image.source)


def _known_pictures(known: KnownPeople, person: int) -> list[tuple[Any, str]]:
    if person < 0:
        return []
    found = [(known.show(person, code), name) for code, name in enumerate(MODALITIES)]
    return [(uri, str(name)) for uri, name in found if uri]
