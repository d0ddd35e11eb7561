"""The report's sentences say no more than the numbers do."""

import pytest

from csdn.report import wording
from csdn.report.advice import naming_gap
from csdn.report.charts import naming_charts
from csdn.report.tables import open_set_rows


def figures_of(trained, clip, hog=10.0, chance=2.0, std=1.0):
    def of(mean):
        return {"a_to_b": {"rank1": {"mean": mean, "std": std}}}

    counts = {"a_to_b": {"gallery": 40}}
    return {"trained": of(trained), "clip": of(clip), "hog": of(hog), "chance": of(chance), "counts": counts}


def plain(text):
    return text.replace(wording.NBSP, " ")


def test_words_claim_the_order_only_where_it_was_measured():
    held = wording.order(figures_of(trained=40.0, clip=30.0))
    assert held == "By rank-1, in every direction: chance < HOG-like < CLIP as it is < trained."
    broken = plain(wording.order(figures_of(trained=25.0, clip=30.0)))
    assert "does not hold: a → b, trained 25.0 % and CLIP as it is 30.0 %." in broken
    assert "does not hold" in wording.order(figures_of(trained=30.0, clip=30.0))


@pytest.mark.parametrize(
    ("trained", "said"),
    [
        (33.5, "3.5 points more than CLIP as it is."),
        (27.0, "3.0 points less than CLIP as it is."),
        (30.9, "CLIP as it is and the trained model differ by less than the spread over the galleries."),
    ],
)
def test_words_call_a_difference_within_the_spread_what_it_is(trained, said):
    assert wording.comparison("a_to_b", figures_of(trained, clip=30.0)) == said


def test_words_state_figure_spread_and_chance():
    (sentence,) = wording.opening(figures_of(trained=40.0, clip=30.0))
    assert plain(sentence) == (
        "An a query has its person at rank 1 in 40.0 ± 1.0 % of searches among 40 b images; "
        "by chance it would be 2.0 ± 1.0 %."
    )
    assert plain(wording.with_spread({"mean": 40.0, "std": None})) == "40.0 %"


def test_words_without_a_figure_state_none():
    figures = figures_of(trained=None, clip=None)
    assert wording.opening(figures) == ["No a image has a match among the b images, so there is no figure."]
    assert wording.comparison("a_to_b", figures) == wording.order(figures) == ""


def test_separation_states_before_and_after_of_each_kind():
    (sentence,) = wording.separation({"Visible – infrared": {"clip": 0.745, "trained": 0.72}})
    assert plain(sentence) == (
        "Visible – infrared: separation 74.5 % before training, 72.0 % after (-2.5 points)."
    )


def test_variance_states_both_shares():
    said = plain(wording.variance((0.35, 0.08), (0.34, 0.02)))
    assert "these people goes from 35 % to 34 %" in said
    assert "two modalities from 8 % to 2 %." in said


def naming(**changes):
    texts = {
        f"{text}_names_{m}": 50.0
        for text in ("visible", "infrared", "fused")
        for m in ("visible", "infrared")
    }
    return texts | changes


def test_naming_compares_the_fused_text_with_the_better_one_alone():
    found = naming(infrared_names_infrared=52.0, fused_names_infrared=47.0, fused_names_visible=50.04)
    cross, change = map(plain, wording.naming_words(found, people=40))
    assert "names 50.0 % of the infrared images" in cross and "40 texts, chance would name 2.5 %" in cross
    assert "names as many visible images as the better of the two alone" in change
    assert "5.0 points fewer of the infrared images than the better of the two alone, infrared only" in change


def test_naming_says_whose_images_it_is_of_where_only_new_people_were_learnt():
    whose, *rest = map(plain, wording.naming_words(naming(new_people=7), people=40))
    assert "those of the 7 new identities" in whose and len(rest) == 2
    assert naming_charts({"new_people": 0}) == []
    assert naming_gap({"new_people": 0}) is None
    assert "the texts are those of the champion" in wording.naming_words({"new_people": 0}, people=40)[0]


def test_naming_bars_are_three_texts_for_each_modality():
    _, infrared = naming_charts(naming(fused_names_infrared=60.0))
    assert plain(infrared.label).endswith("Visible only 50.0 %, Infrared only 50.0 %, Fused by SII 60.0 %")
    assert [bar.get_width() for bar in infrared.figure.axes[0].patches] == [60.0, 50.0, 50.0]


def test_open_set_words_and_table_have_only_what_the_test_people_support():
    rate = {"value": 5.94, "low": 3.25, "high": 9.97}
    known = {"people": 80, "mated_people": 80, "gallery_people": 79, "gallery_images": 316}
    known["fpir_10"] = {"dir": rate, "fpir": rate}
    few, none = {"people": 13, "mated_people": 13}, {"people": 80, "mated_people": 0}
    figures = {"open_set": {"a_to_b": known, "b_to_a": few, "c_to_d": none}}
    said = [plain(sentence) for sentence in wording.open_set(figures)]
    assert "FPIR of 10 %, 5.9 % (3.2 to 10.0)" in said[0]
    assert "FPIR of 1 %, which takes 300 test people; there are 80" in said[1]
    assert "FPIR of 10 %, which takes 30 test people; there are 13" in said[2]
    assert said[4:] == ["C → d: no query has a match in the gallery, so there is no DIR."]
    (row,) = open_set_rows(figures)
    assert plain(row["fpir"]) == "10 %" and row["gallery"] == ("79 people,", "316 images")
