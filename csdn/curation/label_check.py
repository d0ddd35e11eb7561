"""`csdn check-labels`: the images and people of a drop whose labels the features contradict, ranked.

The images of the drop are compared with each other and with images of the people of the ledger's other
accepted drops. No features judge the label of a person that they were trained on:

* people that the model was not trained on are judged by the model's features;
* people that it was trained on (its config.json names them) by those of CLIP without training, in a metric
  that is fitted on four fifths of the people and judges the others, in turn (csdn.curation.labels.whitened).

Scores are standardised for each of the two, so that one ranking has all. Features are kept in galleries below
`.state/labels`, so that a run that was stopped goes on, and the next drop costs its own images alone.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F

from csdn.curation.labels import FOLDS, compare, same_person, split_people, standardised, whitened
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
KNOWN = 2  # images of a person by each camera, in all other drops together, at most
MODEL, CLIP = "model", "CLIP"  # whose features judge a label

Report = Callable[[int, int], None]  # images done, images in all
Refused = list[tuple[str, str]]  # (path, reason)


class LabelledImage(NamedTuple):
    """An image as its drop lists it; `person` is the canonical label that counts."""

    record: ImageRecord
    person: str
    image: GalleryImage


class Finding(NamedTuple):
    """A label that is contradicted; score: in robust standard deviations above the drop's median.

    Of an image (row `row`): `other` is the person that it resembles more than its label `person`. Of two
    people, `person` and `other` may be one. Of a person alone (other == ""), the label may be two people.
    """

    score: float
    person: str
    other: str
    judge: str  # MODEL or CLIP
    row: int = -1
    own_similarity: float = float("nan")  # cosine to the label's other images; NaN of people
    other_similarity: float = float("nan")


@dataclass(frozen=True)
class LabelCheck:
    """What the features say of the labels of a drop; all lists of findings are ranked.

    rows: the images of the drop (the first `size`), then those that they were compared with. features:
    float32 [rows, D], of the model. part [rows]: the half of an image's label, 0 or 1; -1 where none is said.
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
    """Judge the labels of a drop; others: the accepted drops whose people it is compared with.

    trained: the people that the embedder's model was trained on. Raises UserError where a drop cannot be
    read, or there are not two people to compare.
    """
    own, refused = labelled_images(drop, aliases)
    known = [one for other in others for one in labelled_images(other, aliases)[0]]
    rows, grey16 = own + _few_of_each(known), params.ingest.grey16_range
    there, features, bad = _features(rows, embedder, grey16, state, report)
    rows, refused = [rows[n] for n in there], [*refused, *bad]
    size = int(np.searchsorted(there, len(own)))
    people = sorted({one.person for one in rows})
    if len(people) < 2 or not size:
        raise UserError(f"{drop}: {len(people)} people in it and in the ledger; there is nobody to compare with")
    labels = np.searchsorted(people, [one.person for one in rows])
    learned = np.isin(people, list(trained))
    judged = np.unique(labels[:size])
    judges = [(MODEL, features, judged[~learned[judged]])]
    if learned[judged].any():
        judges += _clip_judges(rows, labels, judged[learned[judged]], params, state, report)
    ...
    return judge_labels(...)


def trained_people(model: Path) -> list[str]:
    """The people that a model was trained on; raises UserError where its config.json does not name them."""
    people = read_config(model).get("people")
    if not isinstance(people, list):
        raise UserError(
            f"{model}/config.json does not name the people that the model was trained on, so which labels it "
            "may judge is not known; use a model that this project has trained (--model DIR)"
        )
    return people
