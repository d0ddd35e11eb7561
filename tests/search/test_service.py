"""The service over HTTP: answers, refusals, and changes of the gallery; in this process."""

import asyncio
import io
import re
import shutil
import struct
import threading
import zlib
from concurrent.futures import ThreadPoolExecutor
from importlib.resources import files

import numpy as np
import pytest
from command_line import csdn
from fastapi.testclient import TestClient
from PIL import Image
from search_models import save_small_model
from service_process import copy_gallery, form, make_gallery

from csdn.data.storage import Store
from csdn.evaluation.open_set import DirectionThresholds, write_thresholds
from csdn.runtime.errors import ServiceUnavailable, UserError
from csdn.search.embedder import hash_of_model
from csdn.search.gallery import Gallery
from csdn.search.limits import BURST_SECONDS, Guard, Limits, Metrics, RateLimiter, Refused
from csdn.search.promotion import Promotion
from csdn.search.service import Batches, Service, Settings
from csdn.search.web import create_app

TOKEN = "the-token"
LOCAL = "http://127.0.0.1"


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return tmp_path_factory.mktemp("images") / "drop"


@pytest.fixture(scope="module")
def made(tmp_path_factory, images):
    """A model and a gallery, to be copied."""
    folder = tmp_path_factory.mktemp("made")
    make_gallery(folder / "gallery", save_small_model(folder / "model"), images)
    return folder


@pytest.fixture
def settings(made, tmp_path):
    for name in ("model", "gallery"):
        shutil.copytree(made / name, tmp_path / name)
    return Settings(
        str(tmp_path / "gallery"), tmp_path / "model", (tmp_path / "thresholds.json",), {}, "cpu", 1
    )


@pytest.fixture
def client(settings):
    """Of a service that wants a token, which this client has."""
    with TestClient(create_app(Service(settings), Limits(), TOKEN), raise_server_exceptions=False) as client:
        client.headers["Authorization"] = f"Bearer {TOKEN}"
        yield client


@pytest.fixture
def picture(images):
    """An image that the gallery has: of person, at camera."""
    path = sorted(images.glob("visible/*/*/*.png"))[0]
    return path.read_bytes(), path.parent.name, path.parent.parent.name


def search(client, image, name="image.png", **fields):
    body, headers = form(image, name, **({"modality": "visible", "among": "both"} | fields))
    return client.post("/v1/search", content=body, headers=headers)


def add(client, image, name="image.png", **fields):
    body, headers = form(image, name, **({"modality": "visible"} | fields))
    return client.post("/v1/gallery", content=body, headers=headers)


def problem(response, status):
    """The answer's text, where it is a refusal as all are: JSON that says what was wrong and what to do."""
    assert response.status_code == status, response.text
    assert response.json().keys() == {"error", "advice"} and all(response.json().values())
    return response.json()["error"]


# Search.


def test_the_person_of_an_image_in_the_gallery_is_found_first(client, picture):
    image, person, camera = picture
    answer = search(client, image, pictures="true").json()
    first = answer["people"][0]
    assert (first["person"], first["rank"], first["images"][0]["camera"]) == (person, 1, camera)
    assert first["score"] == pytest.approx(1, abs=1e-3)
    assert first["images"][0]["picture"].startswith("data:image/jpeg;base64,")
    assert (answer["match"], answer["threshold"]) == (None, None)
    scores = [found["score"] for found in answer["people"]]
    assert scores == sorted(scores, reverse=True) and len(scores) == 10


def test_filters_choose_what_is_searched(client, picture):
    image, _, camera = picture
    found = search(client, image, camera=[camera, "nowhere"], top=3).json()["people"]
    assert {image["camera"] for person in found for image in person["images"]} == {camera}
    assert search(client, image, camera="nowhere").json()["people"] == []
    other = search(client, image, among="infrared").json()["people"]
    assert {image["modality"] for person in other for image in person["images"]} == {"infrared"}
    assert search(client, image, since="2026-11-01T08:00").json()["people"] == []  # no image has a time


def test_the_verdict_comes_from_the_thresholds_of_the_model(settings, picture):
    def level(value):
        return DirectionThresholds(
            people=30, gallery_people=40, gallery_images=80, thresholds=[value], fpir=[0.1]
        )

    model = Gallery.open(settings.gallery).manifest.model
    for value, match in ((-1.0, True), (1.01, False)):
        write_thresholds(settings.thresholds[0], model, True, {"visible_to_infrared": level(value)})
        with TestClient(create_app(Service(settings), Limits(), None), base_url=LOCAL) as client:
            answer = search(client, picture[0], among="infrared", fpir=0.5).json()
            assert (answer["match"], answer["threshold"]) == (match, value)
            assert ("no match above the threshold (FPIR 50 %" in answer["verdict"]) is not match
            assert answer["people"][0]["match"] is match
            assert search(client, picture[0], modality="infrared").json()["match"] is None
            assert search(client, picture[0], among="both").json()["match"] is None


def test_a_label_that_is_none_is_refused_and_fails_no_other_search(client, picture):
    assert "camera" in problem(search(client, picture[0], camera="1.5"), 422)
    assert "person" in problem(client.delete("/v1/people/1.5"), 422)
    assert search(client, picture[0]).status_code == 200


def test_an_item_that_fails_does_not_fail_those_computed_with_it():
    def inverses(items):
        return [1 / item for item in items]

    async def together():
        batches = Batches(inverses)
        return await asyncio.gather(*map(batches, (1, 0, 2, 4)), return_exceptions=True)

    found = asyncio.run(together())
    assert isinstance(found[1], ZeroDivisionError) and [found[0], *found[2:]] == [1, 0.5, 0.25]


@pytest.mark.parametrize("time", ["0001-01-01T00:00+14:00", "9999-12-31T23:59-12:00"])
def test_a_time_that_utc_does_not_have_is_none(client, picture, time):
    assert add(client, picture[0], time=time).status_code in (201, 422)
    assert search(client, picture[0]).status_code == 200


def test_waiting_changes_stop_no_search(settings, picture):
    """More changes than the pool of threads has, while another process holds the gallery."""
    service = Service(settings)
    app = create_app(service, Limits(requests=200), None)
    with TestClient(app, base_url=LOCAL) as client, ThreadPoolExecutor(60) as threads:
        with service.writing:
            changes = [threads.submit(add, client, picture[0]) for _ in range(50)]
            found = threads.submit(search, client, picture[0]).result(timeout=20)
            assert found.status_code == 200 and not any(change.done() for change in changes)
        assert {change.result(timeout=60).status_code for change in changes} == {201}


def test_a_second_service_follows_a_promotion_of_the_first(settings, picture):
    first, second = Service(settings), Service(settings)
    save_small_model(settings.model, seed=1)
    for service in (first, second):
        Promotion(service).look()
        assert service.state.embedder.model_hash == hash_of_model(settings.model)
        with TestClient(create_app(service, Limits(), None), base_url=LOCAL) as client:
            assert search(client, picture[0]).json()["model"] == hash_of_model(settings.model)


def test_an_empty_gallery_has_nobody(settings, picture):
    gallery = Gallery.open(settings.gallery)
    gallery.remove([name for name in set(gallery.column("person").to_pylist()) if name])
    with TestClient(create_app(Service(settings), Limits(), TOKEN)) as client:
        client.headers["Authorization"] = f"Bearer {TOKEN}"
        answer = search(client, picture[0])
        assert answer.status_code == 200 and answer.json()["people"] == []


# Bad input.


def huge_png():
    """A PNG that announces 60,000 x 60,000 pixels."""
    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)

    def chunk(name, data):
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    pixels = chunk(b"IDAT", zlib.compress(bytes(1000)))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + pixels + chunk(b"IEND", b"")


def noise():
    file = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 32, 3), np.uint8)).save(file, "JPEG")
    return file.getvalue()


@pytest.mark.parametrize(
    ("image", "name", "word"),
    [
        (b"hello", "image.png", "not a png image"),
        (noise()[:-200], "image.jpg", "truncated"),
        (b"", "image.png", "empty"),
        (huge_png(), "image.png", "too large"),
        (noise(), "image.png", "not a png image"),
        (noise(), "image.svg", ".svg"),
        (noise(), "image", ""),
    ],
    ids=["text", "truncated", "0 bytes", "60,000 x 60,000", "other format", "unknown format", "no format"],
)
def test_a_bad_image_is_refused_by_both_endpoints(client, settings, image, name, word):
    for send in (search, add):
        assert word in problem(send(client, image, name), 400)
    assert not (settings.model.parent / "gallery/uploads").exists()


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("modality", "thermal"),
        ("top", "0"),
        ("top", "many"),
        ("among", "none"),
        ("since", "yesterday"),
        ("until", "1e9"),
        ("fpir", "2"),
    ],
)
def test_a_wrong_field_is_named(client, picture, field, value):
    assert field in problem(search(client, picture[0], **{field: value}), 422)


def test_a_request_that_is_no_form_is_refused(client):
    for headers in ({}, {"content-type": "multipart/form-data"}, {"content-type": "application/json"}):
        response = client.post("/v1/search", content=b"{}", headers=headers)
        assert response.status_code in (400, 422)
        problem(response, response.status_code)


def test_unknown_paths_and_methods_are_refused_as_json(client):
    problem(client.get("/v2"), 404)
    problem(client.get("/v1/search"), 405)


def test_labels_that_cannot_be_kept_are_refused(client, picture):
    assert "person" in problem(add(client, picture[0], person="a\0b"), 422)
    assert "camera" in problem(add(client, picture[0], camera="x" * 300), 422)


def test_a_gallery_cut_short_is_refused_when_the_service_starts(settings):
    (part,) = (settings.model.parent / "gallery").glob("*.npy")
    part.write_bytes(part.read_bytes()[:-100])
    with pytest.raises(UserError, match="damaged"):
        Service(settings)


def test_a_gallery_of_another_model_is_refused_when_the_service_starts(settings):
    shutil.rmtree(settings.model)
    save_small_model(settings.model, seed=1)
    with pytest.raises(UserError, match="csdn gallery build"):
        Service(settings)


def test_a_store_that_goes_away_leaves_search_and_refuses_changes(settings, picture, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    stored = copy_gallery(settings.gallery, f"memory://bucket/{tmp_path.name}")
    elsewhere = Settings(stored.address, settings.model, (), {}, "cpu", 1)

    def away(*_):
        raise ServiceUnavailable("s3://secret-bucket does not respond")

    app = create_app(Service(elsewhere), Limits(), None)
    with TestClient(app, base_url=LOCAL, raise_server_exceptions=False) as client:
        for method in ("find", "read", "put"):
            monkeypatch.setattr(Store, method, away)
        assert search(client, picture[0]).json()["people"][0]["person"] == picture[1]
        for response in (add(client, picture[0]), client.delete(f"/v1/people/{picture[1]}")):
            assert "store" in problem(response, 503)
            assert "secret" not in response.text and response.headers["retry-after"]


def test_pictures_that_do_not_come_are_left_out(client, picture, monkeypatch):
    waiting = threading.Event()
    monkeypatch.setattr("csdn.search.service.PICTURE_SECONDS", 0.1)
    monkeypatch.setattr(Gallery, "read_image", lambda *_: waiting.wait(10))
    people = search(client, picture[0], pictures="true", top=3).json()["people"]
    assert [person["images"][0]["picture"] for person in people] == [None] * 3
    waiting.set()


def test_a_defect_says_nothing_of_the_server(client, picture, monkeypatch):
    def fail(*_):
        raise RuntimeError("/secret/path")

    monkeypatch.setattr("csdn.search.service.picture_of", fail)
    response = search(client, picture[0])
    problem(response, 500)
    assert "secret" not in response.text


# Limits.


def test_a_request_without_the_token_sees_nothing(client, picture):
    body, headers = form(picture[0], modality="visible")
    for token in ("", "Bearer", "Bearer wrong", f"Basic {TOKEN}", f"Bearer {TOKEN}x", "Bearer ü"):
        given = {"Authorization": token.encode("latin-1")}
        for method, path in (
            ("POST", "/v1/search"),
            ("POST", "/v1/gallery"),
            ("DELETE", f"/v1/people/{picture[1]}"),
            ("GET", "/metrics"),
        ):
            response = client.request(method, path, content=body, headers=headers | given)
            assert "token" in problem(response, 401) and response.headers["www-authenticate"] == "Bearer"
    assert len(search(client, picture[0]).json()["people"]) == 10  # nobody was removed


def test_without_a_token_only_this_machine_is_listened_to(settings, monkeypatch):
    monkeypatch.delenv("CSDN_TOKEN", raising=False)
    with pytest.raises(UserError, match="CSDN_TOKEN"):
        csdn("serve", "--gallery", settings.gallery, "--model", str(settings.model), "--host", "0.0.0.0")


def test_without_a_token_pages_of_other_sites_are_refused(settings):
    with TestClient(create_app(Service(settings), Limits(), None), base_url=LOCAL) as client:
        assert client.get("/metrics").status_code == 200
        assert client.get("/metrics", headers={"origin": LOCAL}).status_code == 200
        for name, value in (("origin", "http://evil.example"), ("origin", "null"), ("origin", "http://[")):
            problem(client.get("/metrics", headers={name: value}), 403)
        for host in ("evil.example", "127.0.0.1.evil.example", "[", ""):
            problem(client.get("/metrics", headers={"host": host}), 403)


def test_a_body_over_the_limit_is_refused(settings, picture):
    pieces = (bytes(10_000) for _ in range(10))  # sent without a length
    with TestClient(create_app(Service(settings), Limits(body_mib=0.05), TOKEN)) as client:
        client.headers["Authorization"] = f"Bearer {TOKEN}"
        headers = {"content-type": "multipart/form-data; boundary=limit"}
        too_long = client.post("/v1/search", content=bytes(60_000), headers=headers)
        assert "larger" in problem(too_long, 413)
        assert "larger" in problem(client.post("/v1/search", content=pieces, headers=headers), 413)
        assert search(client, picture[0]).status_code == 200


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
@pytest.mark.anyio
async def test_a_body_that_does_not_arrive_is_given_up(anyio_backend):
    answers = []

    async def reads_all(scope, receive, send):
        while (await receive())["more_body"]:
            pass

    async def stalls():
        await asyncio.sleep(60)

    async def note(message):
        answers.append(message)

    guard = Guard(reads_all, Limits(body_seconds=0.02), None, Metrics())
    headers = [(b"host", b"127.0.0.1")]
    scope = {"type": "http", "method": "POST", "path": "/v1/search", "headers": headers}
    with pytest.raises(Refused) as refused:  # the application turns it into the answer
        await guard(scope, stalls, note)
    assert refused.value.status_code == 408 and guard.active == 0


def test_a_client_over_its_rate_waits_as_long_as_it_is_told(settings):
    with TestClient(create_app(Service(settings), Limits(rate=1), TOKEN)) as client:
        client.headers["Authorization"] = f"Bearer {TOKEN}"
        statuses = [client.get("/metrics").status_code for _ in range(BURST_SECONDS + 3)]
        assert statuses == [200] * BURST_SECONDS + [429] * 3
        refused = client.get("/metrics")
        assert "address" in problem(refused, 429) and refused.headers["retry-after"] == "1"
        assert client.get("/healthz").status_code == 200


def test_the_rate_of_an_address_is_its_own_and_recovers():
    now = [0.0]
    limiter = RateLimiter(10, lambda: now[0])
    assert [limiter.seconds_to_wait("a") for _ in range(20)] == [0] * 20
    assert limiter.seconds_to_wait("a") == pytest.approx(0.1)
    assert limiter.seconds_to_wait("b") == 0
    now[0] = 0.1
    assert limiter.seconds_to_wait("a") == 0
    assert limiter.seconds_to_wait("a") == pytest.approx(0.1)
    now[0] = 1000.0
    assert [limiter.seconds_to_wait("a") for _ in range(21)].count(0) == 20


# The gallery.


def test_an_added_image_is_found_and_a_removed_person_is_gone(client, settings):
    image = noise()
    added = add(client, image, "../../etc/passwd.jpg", person="Ana", camera="Gate", time="2026-11-01T08:00")
    assert added.status_code == 201
    sha256 = added.json()["sha256"]
    uploads = settings.model.parent / "gallery/uploads"
    assert [path.name for path in uploads.iterdir()] == [f"{sha256}.jpg"]

    found = search(client, image, "x.jpg", since="2026-11-01", pictures="true").json()["people"]
    assert [person["person"] for person in found] == ["ana"]
    assert found[0]["score"] == pytest.approx(1, abs=1e-3) and found[0]["images"][0]["picture"]
    assert found[0]["images"][0]["time"] == "2026-11-01T08:00:00+00:00"

    before = added.json()["images"]
    assert add(client, image, "y.jpg", person="ben").json()["images"] == before  # the same image
    assert search(client, image, "x.jpg", top=1).json()["people"][0]["person"] == "ben"
    problem(client.delete("/v1/people/ana"), 404)
    assert client.delete("/v1/people/BEN").json() == {"removed": 1}
    assert search(client, image, "x.jpg", top=1).json()["people"][0]["person"] != "ben"
    assert not list(uploads.iterdir())
    problem(client.delete("/v1/people/ben"), 404)


def test_what_another_process_adds_is_there_after_the_next_change(client, settings, picture):
    gallery = Gallery.open(settings.gallery)
    gallery.remove([picture[1]])
    add(client, noise(), "a.jpg", person="ana")
    names = {person["person"] for person in search(client, picture[0], top=100).json()["people"]}
    assert picture[1] not in names and "ana" in names


# Documents, metrics, page.


def test_the_openapi_document_has_every_endpoint_and_examples(client):
    document = client.get("/openapi.json").json()
    assert {"/v1/search", "/v1/gallery", "/v1/people/{person}", "/metrics"} <= document["paths"].keys()
    for name in ("SearchAnswer", "PersonFound", "ImageFound", "Problem"):
        fields = document["components"]["schemas"][name]["properties"].values()
        values = [field for field in fields if field.get("type") != "array" and "enum" not in field]
        assert values and all("examples" in field for field in values)


def test_metrics_count_requests_by_route_without_names_of_people(client):
    client.delete("/v1/people/somebody")
    client.get("/nowhere")
    text = client.get("/metrics").text
    assert 'method="DELETE",route="/v1/people/{person:path}",status="404"} 1.0' in text
    assert re.search(r"^csdn_gallery_images [1-9]", text, re.MULTILINE)
    assert "somebody" not in text and "nowhere" not in text


def test_probes_need_no_token(client):
    del client.headers["Authorization"]
    assert client.get("/healthz").json() == client.get("/readyz").json() == {"status": "ok"}


def test_the_page_loads_only_what_the_service_has(client):
    page = client.get("/")
    assert "default-src 'none'" in page.headers["content-security-policy"]
    for name in re.findall(r'(?:src|href)="([^"]+)"', page.text):
        assert client.get(f"/{name}").status_code == 200
    sources = [path.read_text() for path in files("csdn.search").joinpath("page").iterdir()]
    assert not any("//" in re.sub(r"^//.*", "", text, flags=re.MULTILINE) for text in sources)
    assert not any("innerHTML" in text for text in sources)


# Batches.


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
@pytest.mark.anyio
async def test_calls_that_wait_are_computed_together_and_get_their_own_results(anyio_backend):
    sizes, busy = [], threading.Event()

    def double(items):
        sizes.append(len(items))
        busy.wait()
        if -1 in items:
            raise ValueError("-1")
        return [2 * item for item in items]

    call = Batches(double)
    first = asyncio.create_task(call(0))
    while not sizes:
        await asyncio.sleep(0.001)
    others = [asyncio.create_task(call(n)) for n in range(1, 6)]
    await asyncio.sleep(0)
    busy.set()
    assert await asyncio.gather(first, *others) == [0, 2, 4, 6, 8, 10]
    assert sizes == [1, 5]
    with pytest.raises(ValueError, match="-1"):
        await call(-1)
    assert await call(7) == 14
