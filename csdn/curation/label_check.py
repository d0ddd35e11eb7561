"""`csdn check-labels`: the images and people of a drop whose labels the features contradict, ranked.

The images of the drop are compared with each other and with images of the people of the ledger's other
accepted drops. No features judge the label of a person that they were trained on:

* people that the model was not trained on are judged by the model's features;
* people that it was trained on (its config.json names them) by those of CLIP without training, in a metric
  that is fitted on four fifths of the people and judges the others, in turn (`cross_validated`).

Features are kept in galleries below `.state/labels`, so that a run that was stopped goes on, and the next
drop costs its own images alone.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from csdn.curation.labels import MODEL, Judge, Judgement, cross_validated, judge_labels
from csdn.data.catalog import MODALITIES, ImageRecord
from csdn.data.labels import NO_LABEL, canonical_label, label_fault
from csdn.data.views import normalised
from csdn.evaluation.baselines import clip_embed, flipped
from csdn.evaluation.run import untrained
from csdn.ingest.ledger import Drop, list_records
from csdn.ingest.sources import open_source
from csdn.model import load_clip, read_config
from csdn.params import Params
from csdn.runtime.errors import UserError
from csdn.search.build import add_images
from csdn.search.embedder import Embedder
from csdn.search.gallery import Gallery
from csdn.search.images import GalleryImage, Grey16Ranges, seconds
from csdn.search.search import Searcher

STATE = Path(".state/labels")
PAIRS = 500  # findings of pairs, at most
KNOWN = 2  # images of a person by each camera, in all other drops together, at most

Report = Callable[[int, int], None]  # images done, images in all
Refused = list[tuple[str, str]]  # (path, reason)


class LabelledImage(NamedTuple):
    """An image as its drop lists it; `person` is the canonical label that counts."""

    record: ImageRecord
    person: str
    image: GalleryImage


class Finding(NamedTuple):
    """A label and how much it is contradicted, in robust standard deviations above the drop's median.

    Of an image (`row`): `other` is the person whom it resembles most, besides its label `person`. Of a pair:
    `person` and `other` may be one. Of a split, which has no `other`: `person` may be two.
    """

    score: float
    person: str
    other: str
    judge: str  # MODEL or CLIP
    row: int = -1
    own_similarity: float = float("nan")  # cosine of the image to the label's other images
    other_similarity: float = float("nan")  # and to those of `other`


@dataclass(frozen=True)
class LabelCheck:
    """What the features say of the labels of a drop; findings are ranked, the most contradicted first.

    rows: the images of the drop (the first `size`), then those that they were compared with. features:
    float32 [rows, D], of the model. part [rows]: the half of the label, 0 or 1; -1 where there is none.
    """

    drop: Drop
    rows: list[LabelledImage]
    size: int
    features: np.ndarray
    images: list[Finding]
    pairs: list[Finding]
    splits: list[Finding]
    part: np.ndarray
    refused: Refused
    learned: set[str]  # people of the drop that the model was trained on

    def contradicted(self, count: int) -> list[Finding]:
        """The first findings of images that resemble another person more than their label."""
        return [one for one in self.images[:count] if one.other_similarity > one.own_similarity]

    def similar(self, row: int, person: str, count: int) -> list[int]:
        """The images of a person that are most similar to an image, without itself."""
        rows = [n for n, one in enumerate(self.rows) if one.person == person and n != row]
        order = np.argsort(-(self.features[rows] @ self.features[row]), kind="stable")
        return [rows[n] for n in order[:count]]

    def examples(self, person: str, count: int, part: int | None = None) -> list[int]:
        """Images of a person, or of a half of the label, one of each camera before a second of any."""
        seen, turns = Counter[str](), []
        for row, one in enumerate(self.rows):
            if one.person == person and part in (None, self.part[row]):
                seen[one.image.camera] += 1
                turns.append((seen[one.image.camera], row))
        return [row for _, row in sorted(turns)[:count]]


def check_labels(
    drop: Drop,
    others: Iterable[Drop],
    embedder: Embedder,
    trained: Iterable[str],
    params: Params,
    aliases: Mapping[str, str],
    report: Report = lambda done, total: None,
    state: Path = STATE,
) -> LabelCheck:
    """Judge the labels of a drop; others: the drops whose people it is compared with.

    trained: the people that the embedder's model was trained on. Raises UserError where a drop cannot be
    read, or there are not two people to compare.
    """
    own, refused = labelled_images(drop, aliases)
    known = [one for other in others for one in labelled_images(other, aliases)[0]]
    rows = own + _few_of_each(known)
    features, bad = _features(rows, embedder, params.ingest.grey16_range, state, report)
    good = [n for n, one in enumerate(rows) if one.image.source not in bad]
    size = int(np.searchsorted(good, len(own)))
    rows, refused = (
        [rows[n] for n in good],
        refused + [(one.record.path, bad[one.image.source]) for one in own if one.image.source in bad],
    )
    people = sorted({one.person for one in rows})
    if not size or len(people) < 2:
        raise UserError(f"{drop}: needs images with labels of two people or more, of it or of other drops")
    labels, learned = np.searchsorted(people, [one.person for one in rows]), np.isin(people, list(trained))
    judged = np.unique(labels[:size])
    judges = [Judge(MODEL, features, new, learned)] if len(new := judged[~learned[judged]]) else []
    if len(old := judged[learned[judged]]):
        clip = ClipEmbedder.of(embedder, params)
        raw, _ = _features(rows, clip, params.ingest.grey16_range, state, report)
        modality = np.array([MODALITIES.index(one.image.modality) for one in rows])
        judges += cross_validated(raw, labels, modality, old)
    views = np.unique([f"{one.image.modality}/{one.image.camera}" for one in rows], return_inverse=True)[1]
    found = judge_labels(judges, labels, views, size)
    return LabelCheck(
        drop,
        rows,
        size,
        features,
        _images(found, labels, people),
        _pairs(found, people),
        _splits(found, people),
        found.part,
        refused,
        {people[n] for n in old},
    )


def trained_people(model: Path) -> list[str]:
    """The people that a model was trained on; raises UserError where its config.json does not name them."""
    people = read_config(model).get("people")
    if not isinstance(people, list):
        raise UserError(
            f"{model}/config.json does not name the people that the model was trained on, so whose labels it "
            "may judge is not known; name a model that this project has trained: --model DIR"
        )
    return people


# The images and their features.


def labelled_images(drop: Drop, aliases: Mapping[str, str]) -> tuple[list[LabelledImage], Refused]:
    """The images of a drop that have a label, and why each of the others is not judged."""
    source = open_source(drop.address, drop.layout)
    records, images = list_records(source, drop), []
    refused = list(source.refused)
    for record in records:
        if fault := label_fault(record.person):
            refused.append((record.path, fault if fault == NO_LABEL else f"person {fault}"))
            continue
        person = canonical_label(record.person)
        person = aliases.get(person, person)
        image = GalleryImage(
            f"{drop.address}/{record.path}",
            person,
            canonical_label(record.camera),
            str(record.modality),
            seconds(record.captured_at),
            record.size,
            partial(source.read, record),
        )
        images.append(LabelledImage(record, person, image))
    return images, refused


def _few_of_each(images: Iterable[LabelledImage]) -> list[LabelledImage]:
    """The first KNOWN images of each person by each camera."""
    seen, kept = Counter[tuple[str, str]](), []
    for one in images:
        view = one.person, one.image.camera
        seen[view] += 1
        if seen[view] <= KNOWN:
            kept.append(one)
    return kept


def _features(
    rows: list[LabelledImage], embedder: Embedder, grey16: Grey16Ranges, state: Path, report: Report
) -> tuple[np.ndarray, dict[str, str]]:
    """The features [n, D] of the good images, in order, and why the others are bad, by source."""
    address = str(state / embedder.model_hash[:16])
    if Gallery(address).exists():
        gallery = Gallery.open(address)
    else:
        gallery = Gallery.create(
            address, embedder.model_hash, embedder.dimension, "float32", embedder.flip_tta
        )
    bad = dict(add_images(gallery, [one.image for one in rows], embedder, grey16, report))
    position = {source: n for n, source in enumerate(gallery.column("source").to_pylist())}
    wanted = [position[one.image.source] for one in rows if one.image.source not in bad]
    return Searcher(gallery).features(np.array(wanted, np.int64)), bad


class ClipEmbedder(Embedder):
    """CLIP without training, for the same images as another embedder's model."""

    @classmethod
    def of(cls, embedder: Embedder, params: Params) -> ClipEmbedder:
        clip = load_clip(params.model.clip, params.model.weights)
        network = untrained(clip, embedder.network)
        return cls(network, embedder.normalize, clip.sha256, embedder.flip_tta, embedder.device)

    @property
    def dimension(self) -> int:
        return self.network.config.embed_dim * (2 if self.flip_tta else 1)

    @torch.inference_mode()
    def embed(self, pixels: np.ndarray | Tensor, modality: str) -> np.ndarray:
        images = normalised(torch.as_tensor(pixels).to(self.device), self.normalize)
        embed = clip_embed(self.network)
        features = (flipped(embed) if self.flip_tta else embed)(images, modality)
        return F.normalize(features.float()).cpu().numpy()


# Findings, ranked.


def _images(found: Judgement, labels: np.ndarray, people: list[str]) -> list[Finding]:
    rows = [n for n in np.argsort(-found.score, kind="stable") if np.isfinite(found.score[n])]
    return [
        Finding(
            float(found.score[n]),
            people[labels[n]],
            people[found.other[n]],
            found.kind[labels[n]],
            int(n),
            float(found.own[n]),
            float(found.best[n]),
        )
        for n in rows
    ]


def _pairs(found: Judgement, people: list[str]) -> list[Finding]:
    """Each pair once, of the drop's people with all."""
    scores = found.pairs.copy()
    twice = np.isin(np.arange(len(people)), found.judged) & (found.judged[:, None] > np.arange(len(people)))
    scores[twice] = np.nan
    best = np.argsort(-scores, axis=None, kind="stable")[: min(PAIRS, np.isfinite(scores).sum())]
    pairs = [
        (found.judged[n], m, scores[n, m]) for n, m in zip(*np.unravel_index(best, scores.shape), strict=True)
    ]
    return [Finding(float(score), people[one], people[two], found.kind[one]) for one, two, score in pairs]


def _splits(found: Judgement, people: list[str]) -> list[Finding]:
    order = np.argsort(-found.splits, kind="stable")[: np.isfinite(found.splits).sum()]
    return [
        Finding(float(found.splits[n]), people[found.judged[n]], "", found.kind[found.judged[n]])
        for n in order
    ]
