"""What a protocol gives: who asks, who answers in each trial, and by which rule, as rows of an index."""

from __future__ import annotations

import hashlib
import inspect
import json
import random
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from csdn.data.labels import canonical_labels

# Columns, one entry an image: person, modality ("visible" | "infrared"), camera, key (the image's own name),
# path (below the data set's root), and places (csdn.data.catalog) for sysu_official.
Index = Mapping[str, Sequence[Any]]


@dataclass(frozen=True)
class Search:
    """One experiment of a protocol: rows of the index that ask, and those that answer in each trial."""

    name: str  # as in "infrared_to_visible"
    rule: str  # of csdn.evaluation.rank_metrics
    queries: np.ndarray  # int64 [q]
    galleries: tuple[np.ndarray, ...]  # int64 [g] for each trial
    drawn_queries: tuple[
        np.ndarray, ...
    ] = ()  # of each trial, where they are drawn too; the first is `queries`

    def asking(self, trial: int) -> np.ndarray:
        """The queries of a trial, int64 [q]."""
        return self.drawn_queries[trial] if self.drawn_queries else self.queries


def rows_of(index: Index, modality: str) -> np.ndarray:
    """Rows of a modality, rising."""
    return np.flatnonzero([value == modality for value in index["modality"]])


def excluded_pairs(search: Search, index: Index, trial: int = 0) -> int | None:
    """(query, gallery image) pairs of one person and one camera, where the rule takes them away.

    None for a rule that is about something else: a reader need not be told that it fires.
    """
    if search.rule not in ("cameras", "llcm"):
        return None
    index = canonical_index(search.rule, index)  # both rules are called as their protocols
    person, camera = index["person"], index["camera"]
    asked = Counter((person[row], camera[row]) for row in search.asking(trial))
    answers = Counter((person[row], camera[row]) for row in search.galleries[trial])
    return sum(count * answers[place] for place, count in asked.items())


# The labels of an index as a protocol takes them, and the images in the order of the published draws.


_NUMBERED = re.compile(r"(.*?)(?<![0-9])0*([0-9]{1,18})", re.DOTALL)  # a number that int64 holds


class Place(NamedTuple):
    """A person in front of a camera."""

    person: int
    camera: int


def canonical_index(name: str, index: Index) -> dict[str, Sequence[Any]]:
    """The index as lists, with the labels that the protocol `name` compares; of a canonical one the same.

    Protocol cameras compares names (csdn.data.labels). The benchmarks pad their numbers: people are numbers
    there, and so are cameras but RegDB's. Raises ValueError for a missing value, a label that is none, and
    two names that one number would stand for.
    """
    counted = {"cameras": (), "regdb": ("person",)}.get(name, ("person", "camera"))
    columns: dict[str, Sequence[Any]] = {}
    for what in index:
        columns[what] = _as_list(index[what], flat=what != "places")
        if what in ("person", "modality", "camera"):
            columns[what] = canonical_labels(columns[what], what)
        if what in counted:
            columns[what] = _numbers(columns[what], what)
    return columns


def _as_list(column: Any, flat: bool) -> list[Any]:
    """By place alone: a column may be a list, an array, a tensor, or a pandas Series with an index.

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


def folders(index: Index, rows: Iterable[int]) -> dict[Place, list[int]]:
    """Rows of each person and camera: people rising, then cameras rising, then paths."""
    found: dict[Place, list[int]] = defaultdict(list)
    for row in rows:
        found[Place(index["person"][row], index["camera"][row])].append(int(row))
    return {place: sorted(found[place], key=lambda row: index["path"][row]) for place in sorted(found)}


def seeded_draw(places: dict[Place, list[int]], shots: int, trial: int) -> np.ndarray:
    """A trial's draw, int64: for each place in order, `shots` of its rows; a place with fewer gives all.

    One shot is what the literature's codes draw: `random.seed(trial)`, then one `random.choice` a place.
    Several shots are a draw of ours from the same generator, `random.sample`: most codes of the literature
    draw ten shots without a seed, so that no two of their runs have the same gallery.
    """
    draws = random.Random(trial)
    if shots == 1:
        drawn = [draws.choice(rows) for rows in places.values()]
    else:
        drawn = [row for rows in places.values() for row in draws.sample(rows, min(shots, len(rows)))]
    return np.array(drawn, dtype=np.int64)


# Protocol of own cameras: infrared looks for visible and the reverse; draws stay when others arrive.


def cameras(index: Index, trials: int = 10) -> list[Search]:
    """Protocol "cameras": infrared looks for visible, and the reverse.

    Every image of one modality is a query. The gallery has one image for each (person, camera) of the
    other: the one whose SHA-256 of (trial, person, camera, key) is lowest, so that a draw stays when other
    images arrive. The rule excludes images of the query's own person and camera.
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
        place = (index["person"][row], index["camera"][row])
        drawn = (_hash(trial, *place, index["key"][row]), int(row))
        lowest[place] = min(lowest.get(place, drawn), drawn)
    return np.array(sorted(row for _, row in lowest.values()), dtype=np.int64)


def _hash(trial: int, person: str, camera: str, key: str) -> bytes:
    # JSON keeps the parts apart: "ab" + "c" is not "a" + "bc".
    return hashlib.sha256(json.dumps([trial, str(person), str(camera), str(key)]).encode()).digest()


# Protocols of SYSU-MM01: every infrared test image looks for visible ones, drawn in one of two ways.


GALLERY_CAMERAS = {"all": (1, 2, 4, 5), "indoor": (1, 2)}
QUERY_CAMERAS = (3, 6)
SHOTS = (1, 10)
OFFICIAL_TRIALS = 10


def sysu(index: Index, mode: str = "all", shots: int = 1, trials: int = 10) -> list[Search]:
    """Protocol "sysu": single-shot galleries as the literature's codes draw them, ten-shot ones by our draw.

    mode: gallery of the cameras 1, 2, 4, 5 ("all") or 1, 2 ("indoor"). shots: images of each person and
    camera, 1 or 10. Trial t is `random.seed(t)`, t = 0, 1, ... (`csdn.evaluation.protocols`).
    """
    return _searches(index, mode, shots, trials, lambda places, trial: seeded_draw(places, shots, trial))


def sysu_official(index: Index, mode: str = "all", shots: int = 1, trials: int = 10) -> list[Search]:
    """Protocol "sysu_official": the first 1 or 10 images of the authors' permutations, `rand_perm_cam.mat`.

    Options as for `sysu`; the index's column `places` tells where each gallery image stands in each trial.
    """
    if "places" not in index:
        raise ValueError("the index has no column places; protocol sysu needs none")
    if trials > OFFICIAL_TRIALS:
        raise ValueError(f"trials = {trials}: the authors give {OFFICIAL_TRIALS} permutations")

    def draw(folders_of: dict[Place, list[int]], trial: int) -> np.ndarray:
        order = index["places"]
        drawn = [row for rows in folders_of.values() for row in _first(rows, order, trial, shots)]
        return np.array(drawn, dtype=np.int64)

    return _searches(index, mode, shots, trials, draw)


def _first(rows: list[int], places: Sequence[Sequence[int] | None], trial: int, shots: int) -> list[int]:
    if any(len(places[row] or ()) <= trial for row in rows):
        raise ValueError(
            "images of the gallery have no places in the authors' permutations: exp/rand_perm_cam.mat was "
            "not there when the data was added; protocol sysu works without it"
        )
    return sorted(rows, key=lambda row: places[row][trial])[:shots]


def _searches(
    index: Index,
    mode: str,
    shots: int,
    trials: int,
    draw: Callable[[dict[Place, list[int]], int], np.ndarray],
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
    places = folders(index, visible[np.isin(camera[visible], GALLERY_CAMERAS[mode])])
    galleries = tuple(draw(places, trial) for trial in range(trials))
    return [Search("infrared_to_visible", "sysu", queries, galleries)]


# Protocol of RegDB: everything of one modality looks for everything of the other; nothing is drawn.


def regdb(index: Index) -> list[Search]:
    """Protocol "regdb": both directions on the test people of one trial, nothing excluded.

    The benchmark's ten trials are ten splits of its people: ten models, each with an index of its own.
    """
    visible, infrared = rows_of(index, "visible"), rows_of(index, "infrared")
    return [
        Search("visible_to_infrared", "regdb", visible, (infrared,)),
        Search("infrared_to_visible", "regdb", infrared, (visible,)),
    ]


# Protocols of LLCM: all of one modality look for one drawn image of each person and camera of the other.


def llcm(index: Index, trials: int = 10) -> list[Search]:
    """Protocol "llcm": both directions; trial t draws with `random.seed(t)`, t = 0, 1, ...

    The rule excludes images of the query's own person and camera.
    """
    return [
        Search(f"{asking}_to_{answering}", "llcm", rows_of(index, asking), _draws(index, answering, trials))
        for asking, answering in (("infrared", "visible"), ("visible", "infrared"))
    ]


def llcm_swapped(index: Index, trials: int = 10) -> list[Search]:
    """Protocol "llcm_swapped": drawn infrared images look for all visible ones.

    This is what the authors' script computes for the figures published as visible to infrared: it draws from
    the modality that should answer, and then lets it ask. The search is named by what it does.
    """
    queries, visible = _draws(index, "infrared", trials), rows_of(index, "visible")
    return [Search("infrared_to_visible", "llcm", queries[0], (visible,) * trials, queries)]


def _draws(index: Index, modality: str, trials: int) -> tuple[np.ndarray, ...]:
    places = folders(index, rows_of(index, modality))
    return tuple(seeded_draw(places, 1, trial) for trial in range(trials))


# The sizes of the published experiments: what must come out where the data is the published data.


# (mode, shots) -> images of a gallery.
SYSU_GALLERIES = {("all", 1): 301, ("indoor", 1): 112, ("all", 10): 3010, ("indoor", 10): 1120}
SYSU_QUERIES = 3803
SYSU_VALID_QUERIES = {"all": 3803, "indoor": 2208}


def published_counts(name: str, counts: Mapping[str, Any], **options: Any) -> dict[str, int]:
    """What the counts of a search should be; empty where nothing is published, or the data is a miniature.

    Data is taken for the published one where at least half as many people are searched for.
    """
    expected = _expected(name, **options)
    return expected if 2 * counts["people"] >= expected.get("people", float("inf")) else {}


def _expected(name: str, mode: str = "all", shots: int = 1, **_: Any) -> dict[str, int]:
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


# Who is a query, who is in the gallery of each trial, and by which rule: pure functions of plain columns.
#
#     rows = protocol("cameras", {"person": [...], "modality": [...], "camera": [...], "key": [...]})
#
# gives searches whose queries and galleries are row numbers of the index, so that anybody's features of those
# rows can be evaluated with `csdn.evaluation.rank_metrics`.


__all__ = [
    "PROTOCOLS",
    "Index",
    "Search",
    "canonical_index",
    "excluded_pairs",
    "options_of",
    "protocol",
    "rule_cameras",
    "rule_people",
]

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
    """The searches of a protocol over an index of test images.

    index: columns of the same length, one entry an image: person, modality ("visible" or "infrared") and
    camera; for the protocol cameras also key, for the others path: draws depend on sorted file names. Labels
    are compared as csdn.data.labels says; people and cameras of the benchmarks are numbers, or names that end
    in one. options: those of the function of that name. Raises ValueError for an unknown name, option or
    modality, for a missing column or columns of different lengths, and for labels as `canonical_index` does.
    Returns one search for each direction: rows of the index, int64, and the rule of `rank_metrics`.
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
    columns = (*_COLUMNS, "key" if name == "cameras" else "path")
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


def rule_cameras(name: str, index: Index) -> np.ndarray:
    """Cameras as `csdn.evaluation.rank_metrics` takes them for a protocol's rule, int64 [n].

    SYSU-MM01's rule is about cameras 2 and 3; the others only ask whether two cameras are the same.
    """
    return _as_numbers(canonical_index(name, index)["camera"])


def rule_people(name: str, index: Index) -> np.ndarray:
    """People as `csdn.evaluation.rank_metrics` takes them, int64 [n]: equal where the protocol sees one."""
    return _as_numbers(canonical_index(name, index)["person"])


def _as_numbers(labels: Sequence[str] | Sequence[int]) -> np.ndarray:
    """The labels themselves where they are numbers, else one number for each name."""
    values = np.asarray(labels)
    return values if values.dtype == np.int64 else np.unique(values, return_inverse=True)[1].astype(np.int64)
