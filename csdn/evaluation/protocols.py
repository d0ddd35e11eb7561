"""Evaluation protocols: queries, galleries of each trial and the rule, as rows of an index of test images.

    protocol        queries                      gallery of a trial                           rule
    cameras         all images of a modality     one image per (person, camera), by hash      cameras
    sysu            all infrared images          1 or 10 images per (person, camera)          sysu
    sysu_official   all infrared images          the same, by the authors' permutations       sysu
    regdb           all images of a modality     all images of the other                      regdb
    llcm            all images of a modality     one image per (person, camera)               llcm
    llcm_swapped    one infrared image per       all visible images                           llcm
                    (person, camera)

The rule says which gallery images are removed for a query (csdn.evaluation.metrics). Everything here is a
pure function of plain columns:

    searches = protocol("cameras", {"person": [...], "modality": [...], "camera": [...], "key": [...]})

Queries and galleries are row numbers of the index, so features of any model can be evaluated with
`csdn.evaluation.rank_metrics`.
"""

from __future__ import annotations

import hashlib
import inspect
import json
import random
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from csdn.data.labels import canonical_labels
from csdn.data.rng import generator

# Columns, one entry an image: person, modality ("visible" | "infrared"), camera, key (the image's own name),
# path (below the data set's root), and places (csdn.data.catalog) for sysu_official.
Index = Mapping[str, Sequence[Any]]
# Rows of each (person, camera): the folders of a benchmark.
Folders = dict[tuple[Any, Any], list[int]]


@dataclass(frozen=True)
class Search:
    """One direction of a protocol, as rows of the index: the queries, and the gallery of each trial."""

    name: str  # as in "infrared_to_visible"
    rule: str  # of csdn.evaluation.rank_metrics
    queries: np.ndarray  # int64 [q]; of trial 0, where they are drawn
    galleries: tuple[np.ndarray, ...]  # int64 [g] for each trial
    drawn_queries: tuple[np.ndarray, ...] = ()  # of each trial, where they are drawn
    sampled_from: int | None = None  # queries of a trial before `sample_queries`; None: all are searched

    def queries_of(self, trial: int) -> np.ndarray:
        """The queries of a trial, int64 [q]."""
        return self.drawn_queries[trial] if self.drawn_queries else self.queries


# Own cameras.


def cameras(index: Index, trials: int = 10) -> list[Search]:
    """Protocol "cameras", for any cameras: infrared queries in visible galleries, and the reverse.

    Every image of one modality is a query. The gallery has one image for each (person, camera) of the other:
    the one whose SHA-256 of (trial, person, camera, key) is lowest, so that a draw does not change when
    images are added. The rule removes images of the query's own person at the query's camera.
    """
    rows = {m: rows_of(index, m) for m in ("infrared", "visible")}
    galleries = {m: tuple(_lowest_hash(index, rows[m], trial) for trial in range(trials)) for m in rows}
    return [
        Search("infrared_to_visible", "cameras", rows["infrared"], galleries["visible"]),
        Search("visible_to_infrared", "cameras", rows["visible"], galleries["infrared"]),
    ]


def _lowest_hash(index: Index, rows: np.ndarray, trial: int) -> np.ndarray:
    """One of `rows` for each (person, camera), in the order of the index."""
    lowest: dict[tuple[Any, Any], tuple[bytes, int]] = {}
    for row in rows:
        person_camera = (index["person"][row], index["camera"][row])
        drawn = (_hash(trial, *person_camera, index["key"][row]), int(row))
        lowest[person_camera] = min(lowest.get(person_camera, drawn), drawn)
    return np.array(sorted(row for _, row in lowest.values()), dtype=np.int64)


def _hash(trial: int, person: str, camera: str, key: str) -> bytes:
    # JSON keeps the parts apart: "ab" + "c" is not "a" + "bc".
    return hashlib.sha256(json.dumps([trial, str(person), str(camera), str(key)]).encode()).digest()


# SYSU-MM01 (Wu et al., ICCV 2017). Visible cameras 1, 2, 4, 5; infrared cameras 3, 6. All infrared test
# images are queries. Cameras 2 and 3 are at the same place, so the rule removes gallery images of camera 2
# for queries of camera 3. The CMC counts people.


GALLERY_CAMERAS = {"all": (1, 2, 4, 5), "indoor": (1, 2)}
QUERY_CAMERAS = (3, 6)
SHOTS = (1, 10)
OFFICIAL_TRIALS = 10


def sysu(index: Index, mode: str = "all", shots: int = 1, trials: int = 10) -> list[Search]:
    """Protocol "sysu": galleries drawn with `random.seed(trial)`, trial = 0, 1, ... (see `seeded_draw`).

    mode: galleries of the cameras 1, 2, 4, 5 ("all-search") or 1, 2 ("indoor-search"). shots: images of each
    person and camera in a gallery, 1 or 10.
    """
    return _sysu(index, mode, shots, trials, lambda folders, trial: seeded_draw(folders, shots, trial))


def sysu_official(index: Index, mode: str = "all", shots: int = 1, trials: int = 10) -> list[Search]:
    """Protocol "sysu_official": the first 1 or 10 images of the authors' permutations, `rand_perm_cam.mat`.

    Options as for `sysu`; the index's column `places` has the position of each gallery image in each trial's
    permutation.
    """
    if "places" not in index:
        raise ValueError("the index has no column places; protocol sysu needs none")
    if trials > OFFICIAL_TRIALS:
        raise ValueError(f"trials = {trials}: the authors give {OFFICIAL_TRIALS} permutations")

    def draw(folders: Folders, trial: int) -> np.ndarray:
        order = index["places"]
        drawn = [row for rows in folders.values() for row in _first_placed(rows, order, trial, shots)]
        return np.array(drawn, dtype=np.int64)

    return _sysu(index, mode, shots, trials, draw)


def _first_placed(
    rows: list[int], places: Sequence[Sequence[int] | None], trial: int, shots: int
) -> list[int]:
    placed = {row: places[row] or () for row in rows}
    if any(len(of_trials) <= trial for of_trials in placed.values()):
        raise ValueError(
            "images of the gallery have no places in the authors' permutations: exp/rand_perm_cam.mat was "
            "not there when the data was added; protocol sysu works without it"
        )
    return sorted(rows, key=lambda row: placed[row][trial])[:shots]


def _sysu(
    index: Index, mode: str, shots: int, trials: int, draw: Callable[[Folders, int], np.ndarray]
) -> list[Search]:
    if mode not in GALLERY_CAMERAS:
        raise ValueError(f"mode = {mode!r}; allowed: {', '.join(GALLERY_CAMERAS)}")
    if shots not in SHOTS:
        raise ValueError(f"shots = {shots!r}; allowed: 1, 10")
    camera = np.array(index["camera"], np.int64)
    queries, visible = rows_of(index, "infrared"), rows_of(index, "visible")
    for rows, known in ((queries, QUERY_CAMERAS), (visible, GALLERY_CAMERAS["all"])):
        if strange := sorted(set(camera[rows].tolist()) - set(known)):
            raise ValueError(f"camera {strange[0]} has images of the other modality than in SYSU-MM01")
    folders = by_person_and_camera(index, visible[np.isin(camera[visible], GALLERY_CAMERAS[mode])])
    galleries = tuple(draw(folders, trial) for trial in range(trials))
    return [Search("infrared_to_visible", "sysu", queries, galleries)]


# RegDB (Nguyen et al., Sensors 2017), with the ten splits of its people that the literature uses.


def regdb(index: Index) -> list[Search]:
    """Protocol "regdb": all images of one modality search all of the other, in both directions.

    No draw, no images removed; the CMC counts images. The benchmark's ten trials are ten splits of its
    people: ten models, each with an index of its own.
    """
    visible, infrared = rows_of(index, "visible"), rows_of(index, "infrared")
    return [
        Search("visible_to_infrared", "regdb", visible, (infrared,)),
        Search("infrared_to_visible", "regdb", infrared, (visible,)),
    ]


# LLCM (Zhang and Wang, CVPR 2023). The rule removes images of the query's own person at the query's camera.
# The CMC counts people.


def llcm(index: Index, trials: int = 10) -> list[Search]:
    """Protocol "llcm": both directions; one gallery image per person and camera (see `seeded_draw`)."""
    return [
        Search(
            f"{queries}_to_{gallery}", "llcm", rows_of(index, queries), _llcm_draws(index, gallery, trials)
        )
        for queries, gallery in (("infrared", "visible"), ("visible", "infrared"))
    ]


def llcm_swapped(index: Index, trials: int = 10) -> list[Search]:
    """Protocol "llcm_swapped": the drawn infrared images are queries, all visible images the gallery.

    The authors' script computes this for the figures published as visible to infrared: it draws the infrared
    gallery and then uses it as the queries. The search has the name of what it computes, infrared to visible.
    """
    queries, visible = _llcm_draws(index, "infrared", trials), rows_of(index, "visible")
    return [Search("infrared_to_visible", "llcm", queries[0], (visible,) * trials, queries)]


def _llcm_draws(index: Index, modality: str, trials: int) -> tuple[np.ndarray, ...]:
    folders = by_person_and_camera(index, rows_of(index, modality))
    return tuple(seeded_draw(folders, 1, trial) for trial in range(trials))


# A limit on the queries, for data of any size. Galleries stay whole; figures estimate those of all queries.


_QUERIES = 1002  # a random stream of its own, far above those of csdn.data.rng.Stream


def sample_queries(search: Search, most: int, seed: int, number: int) -> Search:
    """The search with at most `most` of its queries, drawn by (seed, number of the search); in their order.

    The same queries search in every trial, unless the protocol draws queries for each trial.
    """
    every = len(search.queries)
    if every <= most:
        return search
    draws = generator(seed, _QUERIES, number)
    drawn = tuple(
        rows[np.sort(draws.choice(len(rows), min(most, len(rows)), replace=False))]
        for rows in search.drawn_queries or (search.queries,)
    )
    of_trials = drawn if search.drawn_queries else ()
    return replace(search, queries=drawn[0], drawn_queries=of_trials, sampled_from=every)


# What the protocols share.


def rows_of(index: Index, modality: str) -> np.ndarray:
    """Rows of a modality, ascending."""
    return np.flatnonzero([value == modality for value in index["modality"]])


def by_person_and_camera(index: Index, rows: Iterable[int]) -> Folders:
    """Rows of each (person, camera), sorted by person, then camera, then path."""
    found: Folders = defaultdict(list)
    for row in rows:
        found[index["person"][row], index["camera"][row]].append(int(row))
    return {folder: sorted(found[folder], key=lambda row: index["path"][row]) for folder in sorted(found)}


def seeded_draw(folders: Folders, shots: int, trial: int) -> np.ndarray:
    """The draw of a trial, int64: `shots` rows of each folder, in their order; a smaller folder gives all.

    For one shot this is the draw of the literature's code: `random.seed(trial)`, then one `random.choice` for
    each person and camera, both ascending, of the sorted file names. For several shots it is our own, by
    `random.sample` from the same generator: most code of the literature draws ten shots without a seed, so
    its galleries cannot be drawn again.
    """
    draws = random.Random(trial)
    if shots == 1:
        drawn = [draws.choice(rows) for rows in folders.values()]
    else:
        drawn = [row for rows in folders.values() for row in draws.sample(rows, min(shots, len(rows)))]
    return np.array(drawn, dtype=np.int64)


# A protocol by its name.


PROTOCOLS: dict[str, Callable[..., list[Search]]] = {
    "cameras": cameras,
    "sysu": sysu,
    "sysu_official": sysu_official,
    "regdb": regdb,
    "llcm": llcm,
    "llcm_swapped": llcm_swapped,
}
_COLUMNS = ("person", "modality", "camera")
_MODALITIES = ("visible", "infrared")


def protocol(name: str, index: Index, **options: Any) -> list[Search]:
    """The searches of a protocol over an index of test images, one for each direction.

    index: columns of the same length, one entry an image: person, modality ("visible" or "infrared") and
    camera; for the protocol cameras also key, for the others path: draws depend on sorted file names. Labels
    are compared as csdn.data.labels says; people and cameras of the benchmarks are numbers, or names that end
    in one. options: those of the function of that name. Raises ValueError for an unknown name, option or
    modality, for a missing column or columns of different lengths, and for labels as `canonical_index` does.
    """
    if name not in PROTOCOLS:
        raise ValueError(f"unknown protocol {name!r}; allowed: {', '.join(PROTOCOLS)}")
    known = options_of(name)
    if unknown := [option for option in options if option not in known]:
        raise ValueError(
            f"protocol {name} has no option {', '.join(unknown)}; it has: {', '.join(known) or 'none'}"
        )
    trials = options.get("trials", 1)
    if not isinstance(trials, int | np.integer) or trials < 1:
        raise ValueError(f"trials = {trials!r}: a whole number, at least 1")
    columns: tuple[str, ...] = (*_COLUMNS, "key" if name == "cameras" else "path")
    if missing := [column for column in columns if column not in index]:
        raise ValueError(f"the index has no column {', '.join(missing)}")
    columns += ("places",) if name == "sysu_official" and "places" in index else ()
    index = canonical_index(name, {column: index[column] for column in columns})
    if len({len(index[column]) for column in columns}) > 1:
        raise ValueError("the index's columns have different lengths")
    if strange := set(index["modality"]) - set(_MODALITIES):
        raise ValueError(f"modality {min(map(repr, strange))}; allowed: {', '.join(_MODALITIES)}")
    return PROTOCOLS[name](index, **options)


def options_of(name: str) -> list[str]:
    """The options of a protocol."""
    return list(inspect.signature(PROTOCOLS[name]).parameters)[1:]


# Labels: which people and cameras a protocol takes for the same.


_NUMBERED = re.compile(r"(.*?)(?<![0-9])0*([0-9]{1,18})", re.DOTALL)  # a number that int64 holds


def rule_cameras(name: str, index: Index) -> np.ndarray:
    """Cameras as `csdn.evaluation.rank_metrics` takes them for a protocol's rule, int64 [n].

    SYSU-MM01's rule needs the numbers of its cameras; the others compare two cameras for equality.
    """
    return _as_numbers(canonical_index(name, index)["camera"])


def rule_people(name: str, index: Index) -> np.ndarray:
    """People as `csdn.evaluation.rank_metrics` takes them, int64 [n]: equal where the protocol sees one."""
    return _as_numbers(canonical_index(name, index)["person"])


def _as_numbers(labels: Sequence[str] | Sequence[int]) -> np.ndarray:
    """The labels themselves where they are numbers, else one number for each name."""
    values = np.asarray(labels)
    return values if values.dtype == np.int64 else np.unique(values, return_inverse=True)[1].astype(np.int64)


def canonical_index(name: str, index: Index) -> dict[str, Sequence[Any]]:
    """The index as lists, with the labels that the protocol `name` compares; idempotent.

    Protocol cameras compares names (csdn.data.labels). The benchmarks pad their numbers: people are numbers
    there, and so are cameras, except RegDB's. Raises ValueError for a missing value, a label without a number
    where one is needed, and two names that end in the same number.
    """
    numbered = {"cameras": (), "regdb": ("person",)}.get(name, ("person", "camera"))
    columns: dict[str, Sequence[Any]] = {}
    for what in index:
        columns[what] = _as_list(index[what], flat=what != "places")
        if what in ("person", "modality", "camera"):
            columns[what] = canonical_labels(columns[what], what)
        if what in numbered:
            columns[what] = _numbers(columns[what], what)
    return columns


def _as_list(column: Any, flat: bool) -> list[Any]:
    """By position: a column may be a list, an array, a tensor, or a pandas Series with an index.

    flat: one value an image; MATLAB's columns have a second dimension of 1.
    """
    if not hasattr(column, "tolist"):
        return list(column)
    values = column if hasattr(column, "numel") else np.asarray(column)  # a tensor, or not
    if flat and values.ndim == 2 and 1 in values.shape:
        values = values.reshape(-1)
    # A float of NumPy keeps its type: float32 is less exact than Python's.
    return list(values) if values.dtype in (np.float16, np.float32) else values.tolist()


def _numbers(labels: Sequence[str], what: str) -> list[int]:
    """The number that each label is, or ends in: 3 of "3", "cam3" and "sysu-0003"."""
    numbers: dict[str, int] = {}
    first: dict[int, tuple[str, str]] = {}  # of each number: the label that had it, and what is before it
    for label in dict.fromkeys(labels):
        match = _NUMBERED.fullmatch(label)
        if match is None:
            raise ValueError(
                f"{what} {label!r} is no number and ends in none of at most 18 digits; this protocol counts "
                "people and cameras, protocol cameras takes names"
            )
        numbers[label] = int(match[2])
        other, before = first.setdefault(numbers[label], (label, match[1]))
        if before != match[1]:
            raise ValueError(
                f"{what} {other!r} and {label!r} end in the same number, and this protocol counts people and "
                "cameras: name both alike if they are one, else give each a number of its own"
            )
    return [numbers[label] for label in labels]


# Sizes of a search, and those of the published experiments: what a benchmark's data must give.


# (mode, shots) -> images of a gallery.
SYSU_GALLERIES = {("all", 1): 301, ("indoor", 1): 112, ("all", 10): 3010, ("indoor", 10): 1120}
SYSU_QUERIES = 3803
SYSU_VALID_QUERIES = {"all": 3803, "indoor": 2208}


def excluded_pairs(search: Search, index: Index, trial: int = 0) -> int | None:
    """Number of (query, gallery image) pairs of one person and one camera, which the rule removes.

    None for the rules of SYSU-MM01 and RegDB, which are not about such pairs.
    """
    if search.rule not in ("cameras", "llcm"):
        return None
    index = canonical_index(search.rule, index)  # both rules have the names of their protocols
    person, camera = index["person"], index["camera"]
    queries = Counter((person[row], camera[row]) for row in search.queries_of(trial))
    gallery = Counter((person[row], camera[row]) for row in search.galleries[trial])
    return sum(count * gallery[person_camera] for person_camera, count in queries.items())


def published_counts(name: str, counts: Mapping[str, Any], **options: Any) -> dict[str, int]:
    """What the counts of a search should be; empty where nothing is published, or the data is a miniature.

    Data is taken for the published one if it has at least half as many people among its queries.
    """
    expected = _published(name, **options)
    return expected if 2 * counts["people"] >= expected.get("people", float("inf")) else {}


def _published(name: str, mode: str = "all", shots: int = 1, **_: Any) -> dict[str, int]:
    if name in ("sysu", "sysu_official"):
        return {
            "people": 96,
            "queries": SYSU_QUERIES,
            "valid_queries": SYSU_VALID_QUERIES[mode],
            "gallery": SYSU_GALLERIES[mode, shots],
        }
    if name == "regdb":
        return {"people": 206, "queries": 2060, "valid_queries": 2060, "gallery": 2060}
    return {}
