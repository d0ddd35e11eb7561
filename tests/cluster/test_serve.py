"""The service under Ray Serve is the same application, with Serve's batching."""

from __future__ import annotations

import socket
from concurrent.futures import ThreadPoolExecutor

import pytest
from ray_work import ON_RAY
from search_models import save_small_model
from service_process import Client, make_gallery

pytestmark = ON_RAY
TOKEN = "the-token"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("serve")
    make_gallery(folder / "gallery", save_small_model(folder / "model"), folder / "images")
    return folder


@pytest.fixture(scope="module")
def url(folder):
    from csdn.cluster.serve import deploy, running
    from csdn.search.limits import Limits
    from csdn.search.service import Settings

    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    settings = Settings(str(folder / "gallery"), folder / "model", (), {}, "cpu", 1)
    with running("127.0.0.1", port):
        deploy(settings, Limits(body_mib=0.1), TOKEN)
        yield f"http://127.0.0.1:{port}"


def test_it_answers_many_clients_as_a_single_process_does(url, folder):
    from csdn.search.embedder import Embedder
    from csdn.search.gallery import Gallery
    from csdn.search.search import Filters, Searcher

    files = sorted((folder / "images/infrared").rglob("*.png"))[:24]
    features = Embedder.open(folder / "model", threads=1).embed_files(files, "infrared")
    searcher = Searcher(Gallery.open(str(folder / "gallery")))
    wanted = [[one.person for one in found] for found in searcher.search(features, 10, Filters("visible"))]

    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda file: Client(url, TOKEN).search(file.read_bytes()), files))
    assert {status for status, _ in found} == {200}
    assert [[one["person"] for one in answer["people"]] for _, answer in found] == wanted


def test_its_limits_and_its_page_are_those_of_a_single_process(url):
    assert Client(url, "wrong").search(b"")[0] == 401
    assert Client(url, TOKEN).search(bytes(200_000))[0] == 413
    assert Client(url, TOKEN).search(b"hello")[1]["error"] == "image: not a png image"
    status, page, headers = Client(url).send("GET", "/")
    assert status == 200 and b"page.js" in page and "content-security-policy" in headers
