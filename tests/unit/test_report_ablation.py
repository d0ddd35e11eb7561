"""The ablation's table on the page: where it was measured, and what it was measured on."""

import pytest
from make_images import write
from report_project import HOSTILE, PARAMS, Elements, make_project
from workspace import ROOT

from csdn.params import leaves
from csdn.report.ablation import FIGURES, Line, Table, ablation_shown, data_hash, write_table
from csdn.report.page import write_report
from csdn.runtime.errors import UserError

BOTH = {name: (20.0 + number, 0.5) for number, name in enumerate(FIGURES)}


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    return make_project(tmp_path_factory.mktemp("project"), (f"person {n}" for n in range(5)))


def table(*lines, data="0a1b", **changes):
    parameters = dict(leaves(PARAMS.model_dump())) | changes
    return Table(lines, "c0ffee" * 6, data, "cameras", 80, parameters)


def page_with(project, shown):
    path = project / "metrics" / "ablation.json"
    path.unlink(missing_ok=True)
    if isinstance(shown, Table):
        write_table(path, shown)
    elif shown is not None:
        write(path, shown)
    return write_report(PARAMS, project, project / "report").read_text("utf-8")


def test_a_measured_table_is_shown_with_what_it_was_measured_on(project):
    data = data_hash(project / "data" / "samples.parquet")
    lines = [Line("baseline", (0, 1, 2), BOTH), Line("sii", (0, 1, 2), BOTH)]
    page = page_with(project, table(*lines, data=data))
    text = Elements(page).text
    assert "What each part of the method brings" in text
    assert "3 trainings of each variant, seeds 0, 1, 2, at commit c0ffeec0ffee; protocol cameras" in text
    row = page[page.index("<b>baseline</b> <small>no text in stage 2</small>") :]
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
    text = Elements(page_with(project, table(Line("sum", (0,), BOTH), **changes))).text
    assert "measured on other data than the rest of this page" in text
    assert f"embedding.epochs 99 (here {PARAMS.embedding.epochs})." in text


def test_many_differing_parameters_are_counted():
    changes = {f"embedding.losses.{name}": 9.0 for name in type(PARAMS.embedding.losses).model_fields}
    (remark,) = ablation_shown(table(Line("sum", (0,), BOTH), **changes), PARAMS, "0a1b")["remarks"]
    assert remark.endswith(", and 1 more.")


def test_variants_of_other_seeds_are_said_to_be():
    lines = Line("sum", (0, 1), BOTH), Line("concat", (2,), BOTH)
    assert (
        "1 to 2 trainings of each variant, not all of the same seeds"
        in (ablation_shown(table(*lines), PARAMS, "0a1b")["measured"])
    )


def test_one_direction_and_one_seed_have_their_columns_and_no_deviation():
    figures = {"ir_to_vis.rank1": (20.0, None), "ir_to_vis.mAP": (21.0, None)}
    shown = ablation_shown(table(Line("sum", (4,), figures)), PARAMS, "0a1b")
    assert shown["groups"] == [("Infrared → visible", 2)] and shown["columns"] == ["rank-1", "mAP"]
    assert shown["rows"][0]["cells"][0] == {"mean": "20.0", "deviation": ""}
    assert shown["measured"].startswith("1 training of each variant, seed 4,")


def test_a_variants_name_is_text_and_never_an_element(project):
    name = HOSTILE.replace("1", "7")
    page = page_with(project, table(Line(name, (0,), BOTH), **{"model.clip": name}))
    assert name not in page
    assert Elements(page).text.count(name) == 2


def test_a_damaged_table_is_named_and_the_old_report_stays(project, fault):
    write(project / "report" / "index.html", b"the report before")
    with pytest.raises(UserError, match=r"ablation\.json: not a table of the ablation") as error:
        page_with(project, b'{"format": 1, "measured": {}}')
    assert (project / "report" / "index.html").read_bytes() == b"the report before"
    fault("report", "the ablation's table is damaged", error.value)
