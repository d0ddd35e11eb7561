"""What a search answers: the ranked people, and whether the best of them passes a threshold.

As a table for terminals, as JSON, and as one offline page with pictures.
"""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from csdn.data.images import BadImage, extension_of, thumbnail
from csdn.evaluation.open_set import Thresholds
from csdn.runtime.errors import UserError
from csdn.runtime.files import atomic_write
from csdn.runtime.sanitize import escape_control_chars
from csdn.search.build import embedded
from csdn.search.embedder import Embedder
from csdn.search.gallery import Gallery
from csdn.search.images import GalleryImage, Grey16Ranges, read_source
from csdn.search.search import EXACT_UP_TO, Filters, ImageMatch, PersonMatch, Searcher

PICTURE = (144, 144)  # height, width in pixels at most, on the page


@dataclass(frozen=True)
class Threshold:
    """The score from which on a person counts as found, at a wanted FPIR; None: why there is none."""

    value: float | None
    fpir: float  # 0..1
    reason: str = ""

    def passed(self, score: float) -> bool | None:
        return None if self.value is None else score >= self.value


@dataclass(frozen=True)
class Answer:
    """The people found for a query, the most similar first."""

    query: str
    modality: str
    threshold: Threshold
    people: list[PersonMatch]

    @property
    def verdict(self) -> str:
        """One line: a match, no match, or that no threshold decides."""
        if not self.people:
            return "no image of the gallery passes the filters"
        fpir = f"FPIR {100 * self.threshold.fpir:g} %"
        if self.threshold.value is None:
            return f"ranked without a threshold: {self.threshold.reason}"
        if not self.threshold.passed(self.people[0].score):
            return f"no match above the threshold ({fpir}: {self.threshold.value:.3f})"
        count = sum(bool(self.threshold.passed(person.score)) for person in self.people)
        people = "1 person" if count == 1 else f"{count} people"
        return f"{people} above the threshold ({fpir}: {self.threshold.value:.3f})"

    def as_json(self) -> dict[str, Any]:
        """JSON values; `match` is null where no threshold decides."""
        best = self.people[0].score if self.people else -1.0
        return {
            "query": self.query,
            "modality": self.modality,
            "match": self.threshold.passed(best),
            "verdict": self.verdict,
            "threshold": self.threshold.value,
            "fpir": self.threshold.fpir,
            "people": [
                {
                    "person": person.person or None,
                    "score": round(person.score, 6),
                    "match": self.threshold.passed(person.score),
                    "images": [asdict(image) | {"score": round(image.score, 6)} for image in person.images],
                }
                for person in self.people
            ],
        }


def threshold_for(
    thresholds: Thresholds | None, searcher: Searcher, modality: str, filters: Filters, fpir: float
) -> Threshold:
    """The threshold for queries of a modality among what passes the filters, or why there is none."""
    try:
        return Threshold(_threshold(thresholds, searcher, modality, filters, fpir), fpir)
    except UserError as error:
        return Threshold(None, fpir, str(error))


def _threshold(
    thresholds: Thresholds | None, searcher: Searcher, modality: str, filters: Filters, fpir: float
) -> float:
    """Raises UserError where the thresholds are of another model, or of other searches."""
    gallery = searcher.gallery.manifest
    if thresholds is None:
        raise UserError(
            "there are no thresholds of this model beside it (../evaluation/thresholds.json); copy them from "
            "the project that trained it, where `dvc repro evaluate` makes them"
        )
    if (thresholds.model, thresholds.flip_tta) != (gallery.model, gallery.flip_tta):
        raise UserError(
            f"the thresholds are of model {thresholds.model[:12]}, flip TTA {thresholds.flip_tta}; the "
            f"gallery is of {gallery.model[:12]}, {gallery.flip_tta}"
        )
    if filters.modality in (None, modality):
        raise UserError(f"there are no thresholds for {modality} queries among {modality} images")
    people, images = searcher.counts(filters)
    if not images:
        raise UserError("no image of the gallery passes the filters")
    return thresholds.threshold(modality, fpir, people, images)


def answer_queries(
    searcher: Searcher,
    embedder: Embedder,
    images: Sequence[GalleryImage],
    filters: Filters,
    top: int,
    threshold: Threshold,
    grey16: Grey16Ranges,
    exact: bool = False,
    reranked: bool = False,
) -> tuple[list[Answer], list[tuple[str, str]]]:
    """The answers for query images of one modality, and (source, reason) of those that are bad."""
    refused = list[tuple[str, str]]()
    read = list(embedded(images, embedder, grey16, refused))
    if not read:
        return [], refused
    features = np.concatenate([features for features, _ in read])
    rows = [row for _, table in read for row in table.select(["source", "modality"]).to_pylist()]
    if reranked:
        found = searcher.search_reranked(features, top, filters)
    else:
        found = searcher.search(features, top, filters, exact)
    pairs = zip(rows, found, strict=True)
    return [Answer(row["source"], row["modality"], threshold, people) for row, people in pairs], refused


def described(gallery: Gallery) -> list[str]:
    """Lines that say what a gallery contains."""
    manifest, people = gallery.manifest, pc.unique(gallery.column("person")).to_pylist()
    counts = pc.value_counts(gallery.column("modality")).to_pylist()
    cameras = sorted(name for name in pc.unique(gallery.column("camera")).to_pylist() if name)
    times = pc.min_max(gallery.column("time")).as_py()
    size = len(gallery) * manifest.dimension * (2 if manifest.dtype == "float16" else 4)
    unlabelled = pc.sum(pc.equal(gallery.column("person"), "")).as_py() or 0
    entry = manifest.index
    index = (
        f"of {entry.images} images, recall@10 {100 * entry.recall:.1f} % against exact search "
        f"({entry.queries} images of the gallery as queries)"
        if entry
        else f"none: up to {EXACT_UP_TO} images are searched exactly"
    )
    return [
        f"gallery   {gallery.address}",
        f"images    {len(gallery)}" + "".join(f", {one['counts']} {one['values']}" for one in counts),
        f"people    {len(set(people) - {''})}, and {unlabelled} unlabelled images",
        f"cameras   {', '.join(cameras) or 'not known'}",
        f"times     {times['min'].isoformat()} to {times['max'].isoformat()}"
        if times["min"]
        else "times     not known",
        f"features  {manifest.dimension} numbers, {manifest.dtype}, {size / 2**20:.1f} MiB",
        f"model     {manifest.model}" + ("" if manifest.flip_tta else ", without flip TTA"),
        f"index     {index}",
    ]


def table(answers: Sequence[Answer]) -> list[str]:
    """Lines for a terminal: for each query its verdict, then a line for each person."""
    lines = []
    for answer in answers:
        lines += [f"{answer.query} ({answer.modality}): {answer.verdict}"]
        rows = [_row(rank, person, answer) for rank, person in enumerate(answer.people, 1)]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        for row in rows:
            lines.append(
                "  " + "  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip()
            )
    return [escape_control_chars(line) for line in lines]


def _row(rank: int, person: PersonMatch, answer: Answer) -> tuple[str, ...]:
    best = person.images[0]
    mark = {True: "+", False: "-", None: " "}[answer.threshold.passed(person.score)]
    return (
        f"{rank:>3}",
        f"{person.score:6.3f}{mark}",
        person.person or "(unlabelled)",
        best.camera or "-",
        best.time or "",
        best.source,
    )


# The page.


@dataclass(frozen=True)
class Picture:
    """A picture as a data URI; None where its file is not there any more, or cannot be read."""

    uri: Markup | None
    image: ImageMatch


def write_page(answers: Sequence[Answer], gallery: Gallery, path: Path) -> None:
    """One HTML file with all pictures in it; it loads nothing from elsewhere."""
    environment = Environment(
        loader=PackageLoader("csdn.search"), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    shown = [
        {
            "answer": answer,
            "query": picture(read_source, answer.query),
            "people": [
                (person, answer.threshold.passed(person.score), _pictures(person, gallery))
                for person in answer.people
            ],
        }
        for answer in answers
    ]
    page = environment.get_template("search.html.j2").render(
        shown=shown, gallery=gallery.address, images=len(gallery), model=gallery.manifest.model
    )
    with atomic_write(path) as temporary:
        temporary.write_text(page, encoding="utf-8")


def _pictures(person: PersonMatch, gallery: Gallery) -> list[Picture]:
    return [Picture(picture(gallery.read_image, image.source), image) for image in person.images]


def picture(read: Any, source: str) -> Markup | None:
    """An image file as a data URI of at most PICTURE; None where it cannot be read."""
    try:
        return picture_uri(read(source), source)
    except (UserError, BadImage, KeyError):
        return None


def picture_uri(data: bytes, name: str) -> Markup:
    """An image file as a data URI of at most PICTURE; `name` has its extension. Raises BadImage."""
    small = thumbnail(data, extension_of(name) or "", *PICTURE)
    return Markup(f"data:image/jpeg;base64,{base64.b64encode(small).decode('ascii')}")
