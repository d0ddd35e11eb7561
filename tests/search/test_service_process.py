"""The service as a process: many requests, more clients than it takes, a promotion under load, the page."""

import shutil
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from urllib.parse import urlsplit

import pytest
from browser import browser_page, needs_browser
from search_models import save_small_model
from service_process import Client, form, load, make_gallery, resident_mib, serving

from csdn.search.embedder import hash_of_model

pytestmark = pytest.mark.slow
TOKEN, AT_A_TIME, BODY_MIB = "the-token", 32, 2
REQUESTS, CLIENTS = 2000, 8
MEMORY_MIB = 40  # that may come while the second half of the requests is served


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("service")
    make_gallery(folder / "gallery", save_small_model(folder / "model"), folder / "images")
    return folder


@pytest.fixture(scope="module")
def service(folder):
    """(URL, process)"""
    options = ("--rate", "100000", "--at-a-time", str(AT_A_TIME), "--body-mib", str(BODY_MIB))
    with serving(folder / "log", folder / "gallery", folder / "model", *options, token=TOKEN) as running:
        yield running


@pytest.fixture(scope="module")
def queries(folder):
    return [path.read_bytes() for path in sorted((folder / "images/infrared").rglob("*.png"))]


def metric(client, name):
    _, text, _ = client.send("GET", "/metrics")
    return next(float(line.split()[-1]) for line in text.decode().splitlines() if line.startswith(name))


def no_traceback(folder):
    return "Traceback" not in (folder / "log").read_text()


def test_thousands_of_requests_get_their_own_answers_and_memory_stays(service, queries, folder):
    url, process = service
    client = Client(url, TOKEN)
    alone = [client.search(query)[1]["people"] for query in queries]

    def send(own, n):
        status, answer = own.search(queries[n % len(queries)])
        same = [found["person"] for found in answer["people"]] == [
            found["person"] for found in alone[n % len(queries)]
        ]
        return status if same else 0

    load(url, REQUESTS // 2, CLIENTS, send, TOKEN)
    before = resident_mib(process.pid)
    statuses, _, _ = load(url, REQUESTS // 2, CLIENTS, send, TOKEN)
    assert set(statuses) == {200}
    assert resident_mib(process.pid) - before < MEMORY_MIB
    assert no_traceback(folder)


def test_of_200_clients_at_once_some_are_told_to_wait_and_the_others_are_served(service, queries):
    url, _ = service
    together = threading.Barrier(200)
    body, headers = form(queries[0], modality="infrared")

    def one(_):
        client = Client(url, TOKEN)
        together.wait()
        return client.send("POST", "/v1/search", body, headers)

    with ThreadPoolExecutor(200) as pool:
        answers = list(pool.map(one, range(200)))
    statuses = [status for status, _, _ in answers]
    assert set(statuses) == {200, 429} and statuses.count(200) >= AT_A_TIME
    assert all(headers["retry-after"] == "1" for status, _, headers in answers if status == 429)
    assert Client(url, TOKEN).search(queries[0])[0] == 200


def test_clients_that_hang_up_leave_nothing_behind(service, queries, folder):
    url, _ = service
    body, _ = form(queries[0], modality="infrared")
    head = (
        "POST /v1/search HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: multipart/form-data; boundary=limit\r\n"
        f"Authorization: Bearer {TOKEN}\r\nContent-Length: {len(body)}\r\n\r\n"
    ).encode()
    place = (urlsplit(url).hostname, urlsplit(url).port)
    for sent in (head[:40], head, head + body[:100], head + body):
        for _ in range(AT_A_TIME):
            with socket.create_connection(place) as connection:
                connection.sendall(sent)
    client = Client(url, TOKEN)
    deadline = time.monotonic() + 20
    while metric(client, "csdn_active_requests") and time.monotonic() < deadline:
        time.sleep(0.05)
    assert metric(client, "csdn_active_requests") == 0
    assert client.search(queries[0])[0] == 200
    assert no_traceback(folder)


def test_a_body_without_an_end_is_refused_while_it_is_sent(service):
    url, _ = service
    head = (
        "POST /v1/search HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: multipart/form-data; boundary=limit\r\n"
        f"Authorization: Bearer {TOKEN}\r\nTransfer-Encoding: chunked\r\n\r\n"
    ).encode()
    part = b'--limit\r\nContent-Disposition: form-data; name="image"; filename="a.png"\r\n\r\n'
    chunk = b"10000\r\n" + bytes(0x10000) + b"\r\n"
    sent = 0
    with socket.create_connection((urlsplit(url).hostname, urlsplit(url).port)) as connection:
        connection.sendall(head + f"{len(part):x}\r\n".encode() + part + b"\r\n")
        with suppress(BrokenPipeError, ConnectionResetError):  # the service has refused it
            while sent < 100 * 2**20:
                connection.sendall(chunk)
                sent += len(chunk)
        assert connection.recv(1000).startswith(b"HTTP/1.1 413")
    assert sent < 20 * 2**20  # what the limit lets in, and the buffers of the connection


@needs_browser
def test_the_page_shows_whom_it_found(service, folder, tmp_path):
    url, _ = service
    image = sorted((folder / "images/visible").rglob("*.png"))[0]
    with browser_page(tmp_path / "profile") as page:
        page.open(f"{url}/")
        page.choose_file("#image", image)
        page.evaluate("document.getElementById('modality').value = 'visible'")
        page.evaluate("document.querySelector('form').requestSubmit()")
        page.wait_for("document.getElementById('status').classList.contains('wrong')")
        assert "token" in page.evaluate("document.getElementById('status').textContent")

        page.evaluate(f"document.getElementById('token').value = '{TOKEN}'")
        page.evaluate("document.querySelector('form').requestSubmit()")
        page.wait_for("document.querySelectorAll('#results img').length === 10")
        page.wait_for("[...document.images].every((image) => image.complete && image.naturalWidth > 0)")
        assert "ranked" in page.evaluate("document.getElementById('status').textContent")
        assert not [text for text in page.messages if "401" not in text]


def test_a_promotion_under_load_loses_no_request(service, folder, queries):
    url, _ = service
    old, ended, seen = hash_of_model(folder / "model"), threading.Event(), []
    before = metric(Client(url, TOKEN), "csdn_gallery_images ")

    def searches():
        client = Client(url, TOKEN)
        while not ended.is_set():
            seen.append(client.search(queries[len(seen) % len(queries)]))

    def adds():
        client, n = Client(url, TOKEN), 0
        while not ended.is_set():
            n += 1
            given = form(queries[n] + bytes(n), modality="infrared", person=f"new {n}")
            status, answer = client.json("POST", "/v1/gallery", *given)
            seen.append((status, None))
            assert status == 201, answer
        return n

    with ThreadPoolExecutor(4) as pool:
        running = [pool.submit(searches) for _ in range(3)]
        added = pool.submit(adds)
        time.sleep(0.5)
        save_small_model(folder / "next", seed=1)
        shutil.rmtree(folder / "model")
        (folder / "next").rename(folder / "model")
        promoted = hash_of_model(folder / "model")
        deadline = time.monotonic() + 60
        while not any(answer and answer["model"] == promoted for _, answer in seen[-10:]):
            assert time.monotonic() < deadline, (folder / "log").read_text()
            time.sleep(0.05)
        ended.set()
        for future in running:
            future.result()
    assert {status for status, _ in seen} == {200, 201}
    assert {answer["model"] for _, answer in seen if answer} == {old, promoted}
    assert metric(Client(url, TOKEN), "csdn_gallery_images ") == before + added.result()
    assert no_traceback(folder)
