"""`csdn gallery` and `csdn search` on images in folders: what a user sees, and what bad input does."""

import hashlib
import json
import re
import shutil

import numpy as np
import pytest
from make_images import huge_png
from PIL import Image
from search_models import name_champion, save_small_model
from typer.testing import CliRunner
from workspace import ROOT

from csdn.cli.main import app
from csdn.evaluation.open_set import DirectionThresholds, write_thresholds
from csdn.ingest.ledger import write_ledger
from csdn.runtime.errors import UserError
from csdn.search import build
from csdn.search.embedder import Embedder, hash_of_model
from csdn.search.gallery import UPLOAD, Gallery
from csdn.search.images import GalleryImage, list_images


def write_image(path, seed, size=(40, 20)):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (size[0] // 4, size[1] // 4, 3), dtype=np.uint8)
    Image.fromarray(np.kron(pixels, np.ones((4, 4, 1), np.uint8))).save(path)


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A model, and a drop of 6 people by two visible cameras and an infrared one; no params.yaml."""
    monkeypatch.chdir(tmp_path)
    save_small_model(tmp_path / "models/embedding")
    for person in range(6):
        for number, camera in enumerate(("visible/north", "visible/south", "infrared/night")):
            write_image(tmp_path / f"drop/{camera}/p{person}/0.png", 10 * person + number)
    (tmp_path / "drop/_SUCCESS").touch()
    return tmp_path


def run(*arguments):
    done = CliRunner().invoke(app, list(map(str, arguments)))
    if done.exception and not isinstance(done.exception, SystemExit):
        raise done.exception
    return done.output


def build_gallery(*more):
    return run("gallery", "build", "--images", "drop", "--out", "g", *more)


def search_json(*more):
    return json.loads(run("search", "--gallery", "g", "--query", "drop/infrared/night/p3", "--json", *more))


def write_limits(root, threshold, model=None):
    """root/evaluation/thresholds.json with one threshold, of the project's model or that with this hash."""
    limits = DirectionThresholds(
        people=40, gallery_people=6, gallery_images=12, thresholds=[threshold], fpir=[3 / 40]
    )
    (root / "evaluation").mkdir()
    model = model or hash_of_model("models/embedding")
    write_thresholds(root / "evaluation/thresholds.json", model, True, {"infrared_to_visible": limits})


@pytest.fixture
def champion(project):
    """v1 is the champion again, by a rollback; what the stages made last is another model."""
    name_champion(project, "v1", hash_of_model(save_small_model(project / "champion/embedding", seed=1)))
    return project / "champion/embedding"


def model_of(gallery="g"):
    return Gallery.open(gallery).manifest.model


def test_the_model_is_the_champion_wherever_it_is(champion):
    assert "note" not in build_gallery() and model_of() == hash_of_model(champion)
    assert "note" not in run("search", "--gallery", "g", "--query", "drop/infrared/night/p3")
    shutil.rmtree("models/embedding")
    champion.rename("models/embedding")  # as after `csdn retrain`, with an older champion fetched
    save_small_model(champion, seed=2)
    assert "note" not in run("search", "--gallery", "g", "--query", "drop/infrared/night/p3")


def test_a_note_says_that_the_champion_is_not_fetched(champion):
    shutil.rmtree(champion)
    said = build_gallery()
    assert said.count("note: models/embedding is not the champion, v1; `csdn fetch-champion` fetches it") == 1
    assert model_of() == hash_of_model("models/embedding")
    shutil.copy(ROOT / "params.yaml", ".")
    assert "note: models/embedding is not" in run("card")


def test_a_gallery_of_a_model_that_is_not_the_champion_is_searched_with_a_note(champion):
    build_gallery("--model", "models/embedding")
    said = run("search", "--gallery", "g", "--query", "drop/infrared/night/p3")
    assert "note: models/embedding is not the champion, v1; `--model champion/embedding` names that" in said
    with pytest.raises(UserError, match="gallery build --from g"):
        run("search", "--gallery", "g", "--query", "drop", "--model", champion)


def test_two_commands_make_a_page_of_matches(project):
    assert "18 images" in build_gallery()
    page = project / "matches.html"
    said = run("search", "--gallery", "g", "--query", "drop/infrared/night", "--html", page, "--top", 3)
    assert len(re.findall(r"^ +\d+ ", said, re.M)) == 6 * 3
    html = page.read_text()
    assert html.count("<section>") == 6
    assert html.count("data:image/jpeg") >= 6 * 4
    assert not re.search(r'(?:src|href)="(?!data:)', html)  # nothing is loaded from elsewhere
    assert "<script" not in html


def test_the_answer_in_json_is_a_ranking_by_cosine_of_the_other_modality(project):
    build_gallery("--dtype", "float32")
    (answer,) = search_json("--top", 6)
    embedder = Embedder.open("models/embedding", device="cpu", threads=1)
    query = embedder.embed_files(["drop/infrared/night/p3/0.png"], "infrared")[0]
    visible = [image for image in list_images("drop", "visible").images if image.modality == "visible"]
    scores = embedder.embed_files([image.source for image in visible], "visible") @ query
    best = {}
    for image, score in zip(visible, scores, strict=True):
        best[image.person] = max(best.get(image.person, -1), float(score))
    expected = sorted(best.items(), key=lambda pair: -pair[1])
    assert [person["person"] for person in answer["people"]] == [person for person, _ in expected]
    np.testing.assert_allclose([p["score"] for p in answer["people"]], [s for _, s in expected], atol=1e-5)
    assert answer["match"] is None and "no thresholds" in answer["verdict"]
    assert {image["modality"] for person in answer["people"] for image in person["images"]} == {"visible"}


def test_a_camera_is_chosen_before_the_ranking_and_both_modalities_can_be_searched(project):
    build_gallery()
    (answer,) = search_json("--camera", "South", "--top", 9)
    assert {i["camera"] for p in answer["people"] for i in p["images"]} == {"south"}
    (answer,) = search_json("--among", "both", "--top", 1)
    assert answer["people"][0]["person"] == "p3"  # the query's own image is in the gallery
    assert answer["people"][0]["score"] == pytest.approx(1, abs=1e-3)
    assert search_json("--camera", "west")[0]["verdict"] == "no image of the gallery passes the filters"


@pytest.mark.parametrize(("threshold", "match"), [(-0.9, True), (1.1, False)])
def test_the_threshold_of_the_model_decides_whether_there_is_a_match(project, threshold, match):
    build_gallery()
    write_limits(project, threshold)
    (answer,) = search_json()
    assert answer["match"] is match
    said = run("search", "--gallery", "g", "--query", "drop/infrared/night/p3/0.png")
    assert ("no match above the threshold (FPIR 10 %" in said) is not match
    (answer,) = search_json("--fpir", "0.001")
    assert answer["match"] is None and "FPIR" in answer["verdict"]  # 40 people do not support it


def test_the_thresholds_beside_a_model_are_found_from_every_folder(project, tmp_path_factory):
    """As where champion/ was copied to a machine that only searches."""
    build_gallery()
    copied = tmp_path_factory.mktemp("copied")
    shutil.copytree("models/embedding", copied / "embedding")
    write_limits(copied, threshold=-0.9)
    (answer,) = search_json("--model", copied / "embedding")
    assert answer["match"] is True
    write_limits(project, threshold=1.1, model="0" * 64)  # another model's are here: not those
    assert search_json("--model", copied / "embedding") == [answer]


def test_re_ranked_answers_have_no_threshold(project):
    build_gallery()
    (answer,) = search_json("--rerank", "--top", 6)
    assert len(answer["people"]) == 6 and "re-ranking" in answer["verdict"]
    assert answer["match"] is None


def test_building_again_embeds_only_what_is_new(project, monkeypatch):
    build_gallery()
    write_image(project / "drop/visible/north/p6/0.png", 99)
    embedded = []
    prepare = Embedder.prepare
    monkeypatch.setattr(Embedder, "prepare", lambda self, *a: embedded.append(a) or prepare(self, *a))
    assert "19 images, 1 more" in run("gallery", "add", "g", "--images", "drop")
    assert len(embedded) == 1


def test_a_killed_build_goes_on_where_its_last_part_ended(project, monkeypatch):
    monkeypatch.setattr(build, "SECONDS", -1)  # a part after each batch
    rows_of, calls = build.rows_of, []

    def killed(*arguments):
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return rows_of(*arguments)

    monkeypatch.setattr(build, "rows_of", killed)
    assert CliRunner().invoke(app, ["gallery", "build", "--images", "drop", "--out", "g"]).exit_code != 0
    assert len(Gallery.open("g")) == 12  # the visible ones
    monkeypatch.undo()
    monkeypatch.chdir(project)
    assert "18 images, 6 more" in build_gallery()
    whole = Gallery.open("g")
    shutil.rmtree("g")
    build_gallery()
    again = Gallery.open("g")
    assert again.column("source").to_pylist() == whole.column("source").to_pylist()
    stored = [np.concatenate([part.features for part in one.parts]) for one in (whole, again)]
    np.testing.assert_array_equal(*stored)


def test_a_new_model_embeds_the_gallery_again_by_the_command_that_the_error_names(project):
    build_gallery()
    save_small_model(project / "models/new", seed=1)
    with pytest.raises(UserError) as refused:
        run("search", "--gallery", "g", "--query", "drop/infrared/night/p3", "--model", "models/new")
    command = re.search(r"csdn (gallery build .*)", str(refused.value))[1]
    assert "18 images" in run(*command.split())
    out = re.search(r"--out (\S+)", command)[1]
    assert Gallery.open(out).manifest.model == hash_of_model("models/new")
    assert Gallery.open(out).column("person").to_pylist() == Gallery.open("g").column("person").to_pylist()


def test_a_plain_folder_is_searched_too(project):
    shutil.copytree("drop/visible", "pictures")
    assert "12 images" in run("gallery", "build", "--images", "pictures", "--out", "plain")
    said = run("gallery", "info", "plain")
    assert "12 unlabelled images" in said and "north, south" in said
    found = run("search", "--gallery", "plain", "--query", "drop/infrared/night/p3/0.png", "--top", 2)
    assert found.count("(unlabelled)") == 2


def test_people_are_removed_by_name(project):
    build_gallery()
    assert "3 images removed" in run("gallery", "remove", "g", "--person", "P3")
    assert "p3" not in Gallery.open("g").column("person").to_pylist()


def test_drops_of_the_ledger_fill_a_gallery(project):
    write_ledger([])
    run("add", project / "drop")
    assert "18 images" in run("gallery", "build", "--drops", "all", "--out", "g")


def test_adding_a_plain_folder_of_known_images_keeps_their_labels(project):
    build_gallery()
    assert "18 images, 0 more" in run("gallery", "add", "g", "--images", "drop/visible", "--images", "drop")
    assert "" not in Gallery.open("g").column("person").to_pylist()


def test_an_image_that_a_manifest_names_under_two_people_is_left_out(project):
    (project / "two").mkdir()
    for name in ("a", "b"):
        shutil.copy("drop/visible/north/p0/0.png", f"two/{name}.png")
    lines = ["path,person,modality,camera", "a.png,ana,visible,north", "a.png,ben,visible,north"]
    (project / "two/Manifest.csv").write_text("\n".join([*lines, "b.png,ana,visible,north"]))
    said = run("gallery", "build", "--images", "two", "--out", "g")
    assert "found under two people (a.png)" in said and "1 images" in said
    assert Gallery.open("g").column("person").to_pylist() == ["ana"]


def test_names_like_numbers_are_no_labels_and_a_folder_of_them_is_taken(project):
    shutil.copytree("drop/visible/north", "pictures/2026.11")
    assert "6 images" in run("gallery", "build", "--images", "pictures", "--out", "g")
    assert set(Gallery.open("g").column("camera").to_pylist()) == {""}
    with pytest.raises(UserError, match=r"1\.5"):
        run("search", "--gallery", "g", "--query", "drop/infrared/night/p3", "--camera", "1.5")
    with pytest.raises(UserError, match=r"1\.5"):
        run("gallery", "remove", "g", "--person", "1.5")


def test_embedding_a_gallery_again_keeps_its_uploads(project):
    build_gallery()
    data = (project / "drop/visible/north/p0/0.png").read_bytes()
    name = f"{hashlib.sha256(data).hexdigest()}.png"
    image = GalleryImage(UPLOAD + name, "zoe", "gate", "visible", None, len(data), None)
    gallery = Gallery.open("g")
    features = np.ones((1, gallery.manifest.dimension), np.float32) / gallery.manifest.dimension**0.5
    gallery.add(features, build.rows_of([image], [hashlib.sha256(data).digest()]), {name: data})
    save_small_model(project / "models/new", seed=1)
    assert "19 images" in run("gallery", "build", "--from", "g", "--out", "n", "--model", "models/new")
    shutil.rmtree("g")
    assert Gallery.open("n").read_image(UPLOAD + name) == data


def test_one_refused_file_beside_one_good_image_is_no_failure(project):
    shutil.copy("drop/infrared/night/p3/0.png", project / "query.png")
    (project / "some").mkdir()
    shutil.move("query.png", "some/query.png")
    (project / "some/film.heic").write_bytes(b"heic")
    assert "1 images" in run("gallery", "build", "--images", "some", "--out", "g", "--modality", "visible")
    said = run("search", "--gallery", "g", "--query", "some")
    assert "film.heic" in said and "query.png (infrared)" in said


def test_a_query_folder_without_the_modality_says_so(project):
    build_gallery()
    shutil.rmtree("drop/infrared")
    with pytest.raises(UserError, match="--modality"):
        run("search", "--gallery", "g", "--query", "drop")


def test_an_index_that_no_search_would_use_is_not_made(project):
    build_gallery()
    with pytest.raises(UserError, match="exactly"):
        run("gallery", "index", "g")


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("text.jpg", b"no image", "not a jpg image"),
        ("empty.png", b"", "empty file"),
        ("cut.png", None, "truncated|decoded"),
        ("film.mp4", b"film", "not taken"),
        ("wide.png", huge_png(60_000), "too large"),
    ],
)
def test_a_bad_image_is_left_out_with_its_reason_and_others_are_taken(project, name, content, reason):
    path = project / "drop/visible/north/p0" / name
    if content is None:
        content = (project / "drop/visible/north/p0/0.png").read_bytes()[:-30]
    path.write_bytes(content)
    said = build_gallery()
    assert "18 images" in said and re.search(reason, said) and name in said
    with pytest.raises(UserError, match=reason):
        run("search", "--gallery", "g", "--query", path)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--modality", "thermal"), "infrared"),
        (("--among", "thermal"), "both"),
        (("--since", "yesterday"), "ISO 8601"),
        (("--fpir", "10"), "between 0 and 1"),
        (("--model", "models/none"), "config.json"),
    ],
)
def test_a_wrong_option_is_named_with_what_is_allowed(project, arguments, says):
    build_gallery()
    with pytest.raises(UserError, match=says):
        run("search", "--gallery", "g", "--query", "drop/infrared/night/p3", *arguments)


def test_no_gallery_an_empty_gallery_no_images_and_no_model_say_what_to_do(project):
    with pytest.raises(UserError, match="gallery build"):
        run("search", "--gallery", "none", "--query", "drop/infrared/night/p3")
    with pytest.raises(UserError, match="--images"):
        run("gallery", "build", "--out", "g")
    Gallery.create("empty", hash_of_model("models/embedding"), 160, "float16", True)
    with pytest.raises(UserError, match="empty"):
        run("search", "--gallery", "empty", "--query", "drop/infrared/night/p3")
    (project / "void").mkdir()
    with pytest.raises(UserError, match="no image"):
        run("gallery", "build", "--images", "void", "--out", "g")
    assert not (project / "g").exists()  # nothing is left behind
    shutil.rmtree("models")
    with pytest.raises(UserError, match="dvc repro"):
        build_gallery()


def test_names_from_data_are_escaped_in_the_page_and_in_the_terminal(project):
    evil = "<img src=x onerror=alert(1)>"
    write_image(project / f"drop/visible/{evil}/p0\x1b[31m/0.png", 5)
    build_gallery()
    said = run(
        "search", "--gallery", "g", "--query", "drop/infrared/night/p3", "--html", "m.html", "--top", 9
    )
    assert "\x1b" not in said
    html = (project / "m.html").read_text()
    assert evil not in html and "&lt;img src=x" in html
