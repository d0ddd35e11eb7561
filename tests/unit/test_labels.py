"""Labels: which spellings are one person, camera or modality, and that every door says the same."""

from __future__ import annotations

import json
from decimal import Decimal
from itertools import cycle

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from benchmark_folders import make_sysu, write_text
from command_line import csdn
from hypothesis import example, given, settings
from hypothesis import strategies as st
from make_images import Project, jpeg, make_drop, people_named, write

from csdn.data.catalog import QUARANTINE_SCHEMA, load_dataset, read_table
from csdn.data.labels import BadLabel, canonical_label, label_fault, spelling_notes
from csdn.evaluation import evaluate_features, protocol, rank_metrics, rule_cameras, rule_people
from csdn.evaluation.protocols import excluded_pairs
from csdn.evaluation.run import prepare
from csdn.ingest.counts import summary_lines
from csdn.ingest.identities import SplitRule, read_aliases
from csdn.ingest.sources import open_source
from csdn.runtime.errors import UserError

TWELVE = [
    *(12, 12.0, "12", "12.0", "12.", " 12.00\t", "1.2e+01", b"12.0", Decimal("12.0"), torch.tensor(12.0)),
    *(kind(12) for kind in (np.int8, np.uint64, np.float16, np.float32, np.float64, np.str_)),
    *(np.array([[12.0]]), np.array(["12"], object)),
]


@pytest.mark.parametrize("value", TWELVE, ids=repr)
def test_a_whole_number_is_one_label_in_every_spelling(value):
    assert canonical_label(value) == "12"


@pytest.mark.parametrize(
    "value",
    [
        *(None, float("nan"), np.float32("nan"), pd.NA, pd.NaT, np.datetime64("NaT"), Decimal("NaN"), b""),
        *("", " ", "\t\n", "\u3000", "nan", "NaN", " None", "NULL", "<NA>", np.str_("nan")),
    ],
    ids=repr,
)
def test_a_missing_value_is_no_label(value):
    assert canonical_label(value) == "" and label_fault(value) == "no label"


@pytest.mark.parametrize("value", ["NA", "Nat", "007", "0012", "1e5", "12e4", "1.2.3", "12,0", "-", "１２"])
def test_a_name_that_looks_like_a_number_or_a_missing_value_is_a_name(value):
    assert canonical_label(value) == value.casefold()


@pytest.mark.parametrize(
    "value",
    [
        *(12.5, "12.5", "1e-05", float("inf"), "-Infinity", np.float32(0.1), Decimal("0.5"), 1e300),
        *(2.0**53, "9007199254740993.0", np.float32(2**24), np.float16(2048), [12], 12j, b"\xff"),
        *("gate\0", "\ud800"),  # no JSON file of ours would hold them, and the report reads such
    ],
    ids=repr,
)
def test_what_can_be_no_label_is_named(value):
    with pytest.raises(BadLabel) as error:
        canonical_label(value)
    assert str(value) in str(error.value) or repr(value) in str(error.value)


@settings(max_examples=40, deadline=None)
@given(st.integers(-(2**53) + 1, 2**53 - 1))
def test_numbers_are_their_own_labels_and_no_two_share_one(number):
    assert {canonical_label(value) for value in (number, float(number), f"{float(number)}")} == {str(number)}


@settings(max_examples=40, deadline=None)
@given(st.text())
@example("ΐ")
@example("ǰ")
@example("İstanbul")
@example("straße")
@example("ﬁ")
def test_a_label_that_is_canonical_stays_and_is_no_missing_value(text):
    if label_fault(text) is None:
        label = canonical_label(text)
        assert label_fault(label) is None and canonical_label(label) == label


def notes(*labels):
    return spelling_notes("cameras", {label: canonical_label(label) for label in labels}, labels, "say so")


@pytest.mark.parametrize(
    "pair",
    [
        *(("7", "007"), ("gate-1", "gate 1"), ("gate_1", "gate1"), ("cam01", "cam1"), ("gate", "gate.")),
        *(("gate", "ga\u200bte"), ("12", "１２"), ("a-07/b", "a 7 b")),
    ],
)
def test_labels_that_look_alike_are_named(pair):
    (note,) = notes(*pair, "elsewhere")
    assert all(repr(label) in note for label in pair) and "look alike" in note and "say so" in note


@pytest.mark.parametrize("pair", [("1-2", "12"), ("a-1", "b-1"), ("7", "70"), ("कि", "का"), ("-", "_")])
def test_labels_that_differ_in_letters_or_numbers_do_not_look_alike(pair):
    assert notes(*pair) == []


# Doors. The same two people and cameras, as each door may be given them.


COLUMNS = {
    "whole numbers": pa.array([7, 12], pa.int32()),
    "float64": pa.array([7.0, 12.0]),
    "float32": pa.array([7, 12], pa.float32()),
    "texts": pa.array(["7.0 ", "12"]),
    "a dictionary": pa.array(["7", "12.0"]).dictionary_encode(),
    "numbers in a dictionary": pa.array([7, 12]).dictionary_encode(),
    "decimals": pa.array([Decimal("7.00"), Decimal("12.00")]),
    "bytes": pa.array([b"7", b"12"]),
}


def listed(root):
    """(person, modality, camera) of a drop's records as they are known later."""
    identity = SplitRule("s", 40)
    source = open_source(str(root), "cameras")
    return [
        (identity.person(record.person), record.modality, canonical_label(record.camera))
        for record in source.listing()
    ]


@pytest.mark.parametrize("column", COLUMNS.values(), ids=COLUMNS)
def test_a_parquet_manifest_may_have_labels_of_any_type(tmp_path, column):
    for name in ("a.jpg", "b.jpg"):
        write(tmp_path / name, b"1")
    rows = {"path": ["a.jpg", "b.jpg"], "person": column, "modality": ["Visible", "INFRARED "]}
    pq.write_table(pa.table({**rows, "camera": column}), tmp_path / "manifest.parquet")
    assert listed(tmp_path) == [("7", "visible", "7"), ("12", "infrared", "12")]


def test_folders_and_csv_manifests_say_the_same_in_other_spellings(tmp_path):
    write(tmp_path / "folders/Visible/Gate /7.0/a.jpg", b"1")
    write(tmp_path / "folders/infrared/GATE/7/b.jpg", b"1")
    text = "path,person,modality,camera\na.jpg,7,visible,gate\nb.jpg,7.0, Infrared,Gate \n"
    write_text(tmp_path / "listed/manifest.csv", text)
    for name in ("a.jpg", "b.jpg"):
        write(tmp_path / "listed" / name, b"1")
    expected = [("7", "infrared", "gate"), ("7", "visible", "gate")]
    assert sorted(listed(tmp_path / "folders")) == sorted(listed(tmp_path / "listed")) == expected


@pytest.mark.parametrize("kind", [np.float32, np.float16])
def test_a_manifest_of_floats_that_lost_digits_is_refused(tmp_path, kind):
    write(tmp_path / "a.jpg", b"1")
    number = np.array([2 / np.finfo(kind).eps], kind)
    rows = {"path": ["a.jpg"], "person": number, "modality": ["visible"], "camera": ["1"]}
    pq.write_table(pa.table(rows), tmp_path / "manifest.parquet")
    with pytest.raises(UserError, match=f"column person: .* as {number.dtype}"):
        listed(tmp_path)


def manifest_drop(root, labels):
    """A drop whose manifest gives its images other (person, camera) than its folders: path -> those."""
    make_drop(root, PEOPLE).joinpath("_SUCCESS").unlink()
    lines = ["path,person,modality,camera"]
    for path in sorted(root.rglob("*.jpg")):
        modality, camera, person, name = path.relative_to(root).parts
        person, camera = labels(modality, camera, person, name)
        lines.append(f"{path.relative_to(root)},{person},{modality},{camera}")
    write_text(root / "manifest.csv", "\n".join(lines) + "\n")
    return root


PEOPLE = people_named(10)


def test_spellings_are_joined_in_the_tables_and_named_once(tmp_path):
    project = Project(tmp_path / "project")
    typed = {"visible": "Gate", "infrared": "gate "}
    project.add(manifest_drop(tmp_path / "drop", lambda m, camera, person, n: (person, typed[m])))
    figures = project.ingest()
    assert figures["cameras"] == {"visible": {"gate": 40}, "infrared": {"gate": 20}}
    index = load_dataset(project.data).test_index()
    assert excluded_pairs(protocol("cameras", index)[0], index) > 0
    assert [line for line in summary_lines(figures) if "WARNING" in line] == [
        "WARNING: cameras: 'Gate' and 'gate ' were joined, as spellings of one label"
    ]
    assert len(project.ingest()["labels"]) == 1


def test_people_who_look_alike_are_named_until_an_alias_joins_them(tmp_path):
    project = Project(tmp_path / "project")
    project.add(make_drop(tmp_path / "one", [*PEOPLE, "7"]))
    project.add(make_drop(tmp_path / "two", [*people_named(3, "guest"), "007", "7.0"]))
    joined, alike = project.ingest()["labels"]
    assert "'7' and '7.0' were joined" in joined
    assert "people: '007' and '7' look alike" in alike and "data.aliases" in alike
    aliases = write(tmp_path / "aliases.json", b'{"007": "7"}')
    assert project.ingest(aliases=str(aliases))["labels"] == [joined]


def test_missing_and_broken_numbers_are_no_person(tmp_path, fault):
    """Never one person for all whose label is missing; a number that is none is counted as bad."""
    given = {"0.jpg": "nan", "1.jpg": "NULL"}
    bad = {"visible/south/person 009": "12.5", "infrared/north/person 009": "inf"}

    def labels(modality, camera, person, name):
        if person == "person 008":
            return given[name], camera
        return bad.get(f"{modality}/{camera}/{person}", person), camera

    project = Project(tmp_path / "project")
    project.add(manifest_drop(tmp_path / "drop", labels))
    figures = project.ingest(max_bad_fraction=0.1)
    assert figures["quarantined"] == {"no label": 6, "person is a number that is not whole": 4}
    rows = read_table(project.data / "quarantine.parquet", QUARANTINE_SCHEMA).to_pylist()
    assert {row["person"] for row in rows} == {"nan", "NULL", "12.5", "inf"}
    people = load_dataset(project.data).people["person"].to_pylist()
    assert people == [*PEOPLE[:8], "person 009"]
    fault(
        "drops and images",
        "a missing value in place of a person (nan, None, NULL, <NA>)",
        "Quarantined as `no label`, and not counted as bad; the rest of the drop goes on.",
    )
    fault(
        "drops and images",
        "a number that is not whole in place of a person",
        "Quarantined as `person is a number that is not whole`; the rest of the drop goes on.",
    )


@pytest.mark.parametrize("camera", [" ", "None", "nan", "7.5"])
def test_an_image_without_a_camera_is_refused(tmp_path, camera):
    write(tmp_path / "a.jpg", b"1")
    write_text(tmp_path / "manifest.csv", f"path,person,modality,camera\na.jpg,ana,visible,{camera}\n")
    source = open_source(str(tmp_path), "cameras")
    assert source.listing() == []
    reason = "camera is a number that is not whole" if camera == "7.5" else "unknown camera"
    assert source.refused == [("a.jpg", reason)]


def test_the_lists_of_a_benchmark_may_have_floats(tmp_path):
    make_sysu(tmp_path)
    before = open_source(str(tmp_path), "sysu").listing()
    write_text(tmp_path / "exp/test_id.txt", "5.0,0012.,\n")
    assert open_source(str(tmp_path), "sysu").listing() == before


@pytest.mark.parametrize("word", ["12.5", "nan", "9" * 30, "１２"])
def test_a_list_with_what_is_no_persons_number_is_refused(tmp_path, word):
    make_sysu(tmp_path)
    write_text(tmp_path / "exp/test_id.txt", f"5,{word}\n")
    with pytest.raises(UserError, match=f"'{word}' is not a person's number"):
        open_source(str(tmp_path), "sysu").listing()


def test_aliases_take_any_spelling_and_refuse_what_is_no_label_or_ambiguous(tmp_path):
    def aliases(**given):
        return read_aliases(write_text(tmp_path / "aliases.json", json.dumps(given)))

    assert aliases(**{"12.0": "Ana ", "12": "ANA"}) == {"12": "ana"}
    for wrong, said in (
        ({"12.5": "ana"}, "12.5"),
        ({"nan": "ana"}, "missing value"),
        ({"12": "ana", "12.0": "bob"}, "12.0"),
    ):
        with pytest.raises(UserError, match=said):
            aliases(**wrong)


# The index of csdn.evaluation: people 1 and 2 before cameras, both of which see both ways.


def an_index(person=str, camera=str):
    rows = [
        (person(p), m, camera(c), f"{m}/{p}-{c}-{n}")
        for p in (1, 2, 12)
        for m, cameras in (("visible", (1, 2, 5)), ("infrared", (3, 6)))
        for c in cameras
        for n in (1, 2)
    ]
    index = dict(
        zip(("person", "modality", "camera", "path"), map(list, zip(*rows, strict=True)), strict=True)
    )
    return index | {"key": index["path"]}


def both_ways(person=str, camera=str):
    """The same with infrared by cameras 1 and 2, so that the rule of the own camera has something to do."""
    index = an_index(person, lambda number: camera({3: 1, 6: 2}.get(number, number)))
    return index


WIDTHS = cycle((2, 3, 4))
SPELLINGS = {
    "whole numbers": int,
    "floats": float,
    "float32": np.float32,
    "floats as texts": lambda number: f"{number}.0",
    "padded": lambda number: f"{number:04d}",
    "bytes": lambda number: str(number).encode(),
    "padded in part": lambda number: f"{number:0{next(WIDTHS)}d}",
}
FEATURES = np.random.default_rng(0).standard_normal((30, 6))


@pytest.mark.parametrize(
    ("name", "spelling"),
    [
        (name, spelling)
        for name in ("sysu", "regdb", "llcm", "llcm_swapped", "cameras")
        for spelling in SPELLINGS
        if name != "cameras" or "padded" not in spelling  # a name is a name there
    ],
)
def test_figures_do_not_depend_on_how_labels_are_spelt(name, spelling):
    make = an_index if name == "sysu" else both_ways
    expected = evaluate_features(FEATURES, make(), name)
    assert evaluate_features(FEATURES, make(person=SPELLINGS[spelling]), name) == expected
    assert evaluate_features(FEATURES, make(camera=SPELLINGS[spelling]), name) == expected
    if name not in ("sysu", "regdb"):
        assert all(counts["excluded_pairs"] for counts in expected["counts"].values())


def test_columns_as_matlab_has_them():
    index = an_index(float, float)
    columns = {what: np.array(index[what])[:, None] for what in ("person", "camera", "modality")}
    for of in (columns, {what: column.T for what, column in columns.items()}):
        assert evaluate_features(FEATURES, index | of, "sysu") == evaluate_features(
            FEATURES, an_index(), "sysu"
        )


@pytest.mark.parametrize("name", ["sysu", "regdb", "llcm", "cameras"])
@pytest.mark.parametrize("what", ["person", "camera", "modality"])
@pytest.mark.parametrize("value", [None, float("nan"), " ", "nan", 2.5])
def test_an_index_with_a_missing_or_broken_label_is_refused(name, what, value):
    index = both_ways() if name != "sysu" else an_index()
    index[what][4] = value
    with pytest.raises(ValueError, match=f"image 4 .*{what}"):
        protocol(name, index)


@pytest.mark.parametrize(
    ("what", "one", "other"),
    [("person", "a-1", "b-1"), ("camera", "vis1", "nir1"), ("camera", "cam1", "1"), ("person", "x01", "y1")],
)
def test_two_names_that_end_in_one_number_are_refused(what, one, other):
    index = both_ways()
    numbers = index[what]
    index[what] = [{"1": one, "2": other}.get(number, "z 99") for number in numbers]
    with pytest.raises(ValueError, match=f"{what} '{one}' and '{other}' end in the same number"):
        protocol("llcm", index)


@pytest.mark.parametrize("what", ["person", "camera"])
def test_a_number_of_thirty_digits_is_refused_in_words(what):
    index = an_index()
    index[what] = ["9" * 30] * 30
    with pytest.raises(ValueError, match=f"{what} '9{{30}}' .* at most 18 digits"):
        protocol("sysu", index)


def test_cameras_padded_in_one_modality_are_one_camera_of_llcm():
    """One query's own camera is 01, the gallery's 1: of two gallery images of its person it sees one."""
    index = {
        "person": ["1", "1", "0001"],
        "modality": ["visible", "visible", "infrared"],
        "camera": ["1", "2", "01"],
        "path": ["a", "b", "c"],
    }
    search = protocol("llcm", index, trials=1)[0]
    assert excluded_pairs(search, index) == 1
    assert rule_cameras("llcm", index).tolist() == [1, 2, 1]
    assert rule_people("llcm", index).tolist() == [1, 1, 1]


def test_a_benchmarks_protocol_does_not_count_two_of_the_data_as_one(tmp_path):
    """7 and 007 are two people of own cameras: whoever evaluates them by numbers is told."""
    project = Project(tmp_path / "project")
    cameras = {"visible": (1, 2), "infrared": (3,)}
    for modality, numbers in cameras.items():
        for camera in numbers:
            for person in ("7", "007", *map(str, range(20, 40))):
                path = f"{modality}/cam{camera}/{person}/0.jpg"
                write(tmp_path / "drop" / path, jpeg(path))
    write(tmp_path / "drop/_SUCCESS", b"")
    project.add(tmp_path / "drop")
    project.ingest(test_percent=80)
    dataset = load_dataset(project.data)
    assert len(prepare(dataset, "cameras").searches) == 2
    with pytest.raises(UserError, match=r"person '0*7' and '0*7' are number 7"):
        prepare(dataset, "sysu")


DISTANCES = np.array([[0.1, 0.3, 0.2]])


NUMBERS = [[5, 7, 7], [5.0, 7.0, 7.0], np.array([5, 7, 7], object)]
TEXTS = [["5", "7.0", "7 "], ["5", "7", "7"]]


@pytest.mark.parametrize(
    ("seven", "others"),
    [(seven, others) for seven in (7, 7.0, np.float32(7)) for others in NUMBERS]
    + [(seven, others) for seven in ("7", "7.0", b"7", " 7") for others in TEXTS],
)
def test_ranking_compares_labels_and_not_spellings(seven, others):
    """The example of the docstring: the second image of three is right, and the third."""
    for rule in ("cameras", "llcm"):
        found = rank_metrics(DISTANCES, [seven], others, [0], [1, 1, 2], rule)
        assert found.mean_ap == pytest.approx(7 / 12)


@pytest.mark.parametrize("bad", [[None], [float("nan")], ["nan"], [""], [2.5], [float("inf")]])
def test_a_ranking_of_missing_labels_is_refused(bad):
    gallery = ["a", "b", "c"] if isinstance(bad[0], str) else [1.0, 2.0, 3.0]
    for arguments in ((bad, gallery, [0], [1, 1, 2]), ([7], [5, 7, 7], bad, gallery)):
        with pytest.raises(ValueError, match="queries"):
            rank_metrics(DISTANCES, *arguments, "cameras")


def test_evaluate_features_names_spellings_it_joined_and_labels_that_look_alike(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    np.save(tmp_path / "f.npy", FEATURES)
    index = both_ways(person=SPELLINGS["padded in part"])
    index["camera"][0] = "1.0"
    pd.DataFrame(index).to_csv(tmp_path / "index.csv", index=False)
    said = {}
    for name in ("llcm", "cameras"):
        printed = csdn("evaluate-features", "f.npy", "--protocol", name, "--index", "index.csv")
        said[name] = [line for line in printed.splitlines() if "WARNING" in line]
    assert "people" in said["llcm"][0] and "cameras: '1' and '1.0' were joined" in said["llcm"][1]
    assert "people" in said["cameras"][0] and "look alike" in said["cameras"][0]


def test_features_without_a_number_are_refused():
    with pytest.raises(ValueError, match=r"\(30, 0\)"):
        evaluate_features(np.zeros((30, 0)), an_index(), "sysu")
