"""The ablation: its variants change parameters that exist, and its table has the measured figures."""

import json
import shutil
import subprocess
import sys

import pytest
from make_images import write
from report_project import HOSTILE, PARAMS, Elements, make_project
from workspace import ROOT, set_params

sys.path.append(str(ROOT / "benchmarks"))
from ablation import (
    VARIANTS,
    Experiment,
    command,
    experiment_name,
    finished,
    markdown,
    measured_table,
    outside_git,
    over_seeds,
)

from csdn.params import leaves, load_params
from csdn.report.page import write_report
from csdn.report.tables import (
    ABLATION_FIGURES,
    AblationFile,
    AblationTable,
    Spread,
    Variant,
    ablation_shown,
    data_hash,
    decisive,
    read_ablation,
)
from csdn.runtime.errors import UserError
from csdn.runtime.files import write_json

# The script that measures.


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_variant_changes_parameters_that_exist(variant, tmp_path):
    shutil.copy(ROOT / "params.yaml", tmp_path)
    set_params(tmp_path, VARIANTS[variant][1])
    load_params(tmp_path / "params.yaml")


def test_no_two_variants_are_the_same():
    assert len({str(sorted(changes.items())) for _, changes in VARIANTS.values()}) == len(VARIANTS)


def test_an_experiment_runs_in_a_copy_with_its_seed_and_its_parameters():
    assert command("no-msel", 4) == [
        *("dvc", "exp", "run", "--temp", "--name", "ablation-no-msel-seed-4"),
        *("-S", "seed=4", "-S", "embedding.losses.msel=0.0", "evaluate"),
    ]


def test_an_experiment_copies_weights_that_are_not_in_git(tmp_path, monkeypatch):
    """DVC runs experiments in a copy of the files in Git."""
    monkeypatch.chdir(tmp_path)
    subprocess.run(["git", "init", "--quiet"], check=True)
    for name in ("weights/clip.safetensors", "models/known", "models/ignored"):
        write(tmp_path / name, b"")
    subprocess.run(["git", "add", "models/known"], check=True)
    assert outside_git("models/known") == []
    assert outside_git("models/ignored") == ["models/ignored"]
    assert outside_git("weights/clip.safetensors") == ["weights"]
    arguments = command("no-msel", 4, ["weights"])
    assert arguments[arguments.index("--copy-paths") + 1] == "weights"


def ran(variant, seed, *values, data="0a1b", **changes):
    """A finished experiment with these figures; changes: parameters beside its variant's."""
    parameters = decisive(dict(leaves(PARAMS.model_dump())) | changes)
    inputs = {key: value for key, value in parameters.items() if key not in VARIANTS[variant][1]}
    figures = dict(zip(ABLATION_FIGURES, map(float, values), strict=False))
    return Experiment(variant, seed, figures, 80, {"data/samples.parquet": data, **inputs})


def test_the_table_has_mean_and_sample_deviation_over_the_seeds():
    experiments = [ran("sii", 1, 24, 2, 3, 4), ran("sum", 0, 10, 20, 30, 40), ran("sii", 0, 20, 2, 3, 4)]
    assert markdown(list(over_seeds(experiments)))[2:] == [
        "| `sum` | the sum of both texts | 1 | 10.0 | 20.0 | 30.0 | 40.0 |",
        "| `sii` | SII: the method | 2 | 22.0 ± 2.8 | 2.0 ± 0.0 | 3.0 ± 0.0 | 4.0 ± 0.0 |",
    ]


def test_a_protocol_of_one_direction_has_its_columns_alone():
    experiments = [ran("sum", 0, 10, 20), ran("sum", 1, 30, 20), ran("shared", 0, 1, 2, 3, 4)]
    assert markdown(list(over_seeds(experiments))) == [
        "| variant | what differs | seeds | IR → VIS rank-1 | IR → VIS mAP |",
        "| --- | --- | --- | --- | --- |",
        "| `shared` | one prompt for both modalities | 1 | 1.0 | 2.0 |",
        "| `sum` | the sum of both texts | 2 | 20.0 ± 14.1 | 20.0 ± 0.0 |",
    ]


def test_the_experiments_of_these_names_are_read_from_what_dvc_shows(monkeypatch):
    def shown(name, rank1):
        headline = {"ir_to_vis": {"rank1": rank1, "mAP": None}, "test_people": 80}
        data = {
            "params": {"params.yaml": {"data": PARAMS.model_dump()}},
            "metrics": {"metrics/headline.json": {"data": headline}},
            "deps": {
                "data/samples.parquet": {"hash": "0a1b"},
                "csdn/losses.py": {"hash": "2c3d"},
                "models/prompts": {"hash": "differs"},
            },
        }
        return {"name": name, "revs": [{"data": data}]}

    experiments = [shown(experiment_name("no-msel", 12), 10.0), shown("teal-moth", 99.0)]
    listed = [{"rev": "workspace"}, {"rev": "c0ffee", "experiments": experiments}]
    monkeypatch.setattr("ablation.output", lambda *command: json.dumps(listed))
    commit, (one,) = finished({"ablation-no-msel-seed-12"})
    assert (commit, one.variant, one.seed, one.figures) == (
        "c0ffee",
        "no-msel",
        12,
        {"ir_to_vis.rank1": 10.0},
    )
    assert one.inputs["csdn/losses.py"] == "2c3d" and "models/prompts" not in one.inputs
    assert one.inputs["embedding.epochs"] == PARAMS.embedding.epochs
    assert not {"embedding.losses.msel", "seed", "scaling.threads"} & set(one.inputs)


def test_a_written_table_is_read_back(tmp_path):
    experiments = [ran("sum", 0, 10, 20), ran("sum", 1, 10.3, 20), ran("baseline", 0, 1, 2)]
    written = measured_table("c0ffee", experiments)
    write_json(tmp_path / "ablation.json", AblationFile(measured=written).model_dump())
    assert read_ablation(tmp_path / "ablation.json") == written
    assert written.parameters["model.integration"] == "sii"  # the baseline's


@pytest.mark.parametrize(
    ("other", "said"),
    [
        (ran("sum", 1, 1, **{"embedding.epochs": 99}), "ablation-sum-seed-1 with 99"),
        (ran("sum", 1, 1, data="ffff"), "ran with data/samples.parquet = 0a1b"),
        (ran("baseline", 0, 1, **{"embedding.losses.msel": 0.5}), "embedding.losses.msel = 1.0"),
    ],
)
def test_experiments_on_other_data_or_parameters_have_no_common_table(other, said):
    with pytest.raises(SystemExit, match=said):
        measured_table("c0ffee", [ran("sum", 0, 1), other])


def test_parameters_that_decide_no_result_may_differ():
    changed = {"scaling.threads": 7, "report.queries": 3, "ingest.watch": ["/elsewhere"]}
    table = measured_table("c0ffee", [ran("sum", 0, 1), ran("sum", 1, 3, **changed)])
    assert table.variants[0].figures["ir_to_vis.rank1"].mean == 2.0


# The file and the page.


def test_the_shipped_file_is_no_table(tmp_path):
    assert read_ablation(ROOT / "metrics/ablation.json") is None
    assert read_ablation(tmp_path / "metrics/ablation.json") is None


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: text[:40],
        lambda text: "[]",
        lambda text: text.replace('"format": 2', '"format": 3'),
        lambda text: text.replace('"mean": 10.0', '"mean": 101.0'),
        lambda text: text.replace('"mean": 10.0', '"mean": NaN'),
        lambda text: text.replace('"mean": 10.0', '"mean": "10"'),
        lambda text: text.replace("ir_to_vis.mAP", "ir_to_vis.mINP"),
        lambda text: json.dumps({"format": 2}),
    ],
)
def test_a_damaged_file_is_named_with_what_to_do(tmp_path, damage):
    path = tmp_path / "ablation.json"
    table = measured_table("c0ffee", [ran("sum", 0, 10, 20)])
    write_json(path, AblationFile(measured=table).model_dump())
    path.write_text(damage(path.read_text()))
    with pytest.raises(
        UserError, match=r"ablation\.json: not a table of the ablation .*benchmarks/ablation\.py"
    ):
        read_ablation(path)


BOTH = {name: Spread(mean=20.0 + number, std=0.5) for number, name in enumerate(ABLATION_FIGURES)}


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    return make_project(tmp_path_factory.mktemp("project"), (f"person {n}" for n in range(5)))


def line(variant, *seeds, figures=BOTH):
    return Variant(variant=variant, difference=f"what {variant} is", seeds=list(seeds), figures=figures)


def table(*lines, data="0a1b", **changes):
    return AblationTable(
        commit="c0ffee" * 6,
        data=data,
        protocol="cameras",
        test_people=80,
        parameters=dict(leaves(PARAMS.model_dump())) | changes,
        variants=list(lines),
    )


def page_with(project, shown):
    path = project / "metrics" / "ablation.json"
    path.unlink(missing_ok=True)
    if isinstance(shown, AblationTable):
        write_json(path, AblationFile(measured=shown).model_dump())
    elif shown is not None:
        write(path, shown)
    return write_report(PARAMS, project, project / "report").read_text("utf-8")


def test_a_measured_table_is_shown_with_what_it_was_measured_on(project):
    data = data_hash(project / "data" / "samples.parquet")
    lines = [line("baseline", 0, 1, 2), line("sii", 0, 1, 2)]
    page = page_with(project, table(*lines, data=data))
    text = Elements(page).text
    assert "contribution of each part" in text
    assert "3 trainings of each variant, seeds 0, 1, 2, at commit c0ffeec0ffee; protocol cameras" in text
    row = page[page.index("<b>baseline</b> <small>what baseline is</small>") :]
    assert row.replace("\xa0", " ").startswith(
        '<td class="n">20.0 <small>± 0.5</small></td>', row.index("<td")
    )
    assert "This table was measured" not in text


@pytest.mark.parametrize("shipped", [None, (ROOT / "metrics/ablation.json").read_bytes()])
def test_a_page_without_a_measured_table_says_nothing_of_it(project, shipped):
    page = page_with(project, shipped)
    assert 'id="ablation"' not in page and "#ablation" not in page


def test_a_table_of_other_data_and_parameters_says_so(project):
    changes = {"embedding.epochs": 99, "seed": 5, "scaling.threads": 9}
    text = Elements(page_with(project, table(line("sum", 0), **changes))).text
    assert "measured on other data than the rest of this page" in text
    assert f"embedding.epochs 99 (here {PARAMS.embedding.epochs})." in text


def test_many_differing_parameters_are_counted():
    changes = {f"embedding.losses.{name}": 9.0 for name in type(PARAMS.embedding.losses).model_fields}
    (remark,) = ablation_shown(table(line("sum", 0), **changes), PARAMS, "0a1b")["remarks"]
    assert remark.endswith(", and 1 more.")


def test_variants_of_other_seeds_are_said_to_be():
    lines = line("sum", 0, 1), line("concat", 2)
    assert "not all of the same seeds" in ablation_shown(table(*lines), PARAMS, "0a1b")["measured"]


def test_one_direction_and_one_seed_have_their_columns_and_no_deviation():
    figures = {"ir_to_vis.rank1": Spread(mean=20.0, std=None), "ir_to_vis.mAP": Spread(mean=21.0, std=None)}
    shown = ablation_shown(table(line("sum", 4, figures=figures)), PARAMS, "0a1b")
    assert shown["groups"] == [("Infrared → visible", 2)] and shown["columns"] == ["rank-1", "mAP"]
    assert shown["rows"][0]["cells"][0] == {"mean": "20.0", "deviation": ""}
    assert shown["measured"].startswith("1 training of each variant, seed 4,")


def test_a_variants_name_is_text_and_never_an_element(project):
    name = HOSTILE.replace("1", "7")
    page = page_with(project, table(line(name, 0), **{"model.clip": name}))
    assert name not in page
    assert Elements(page).text.count(name) == 3


def test_a_damaged_table_is_named_and_the_old_report_stays(project, fault):
    write(project / "report" / "index.html", b"the report before")
    with pytest.raises(UserError, match=r"ablation\.json: not a table of the ablation") as error:
        page_with(project, b'{"format": 2, "measured": {}}')
    assert (project / "report" / "index.html").read_bytes() == b"the report before"
    fault("report", "the ablation's table is damaged", error.value)
