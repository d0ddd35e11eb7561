"""Which requests to an object store are repeated, and what their errors say."""

from __future__ import annotations

import hashlib
import pickle

import gcsfs.retry
import google.auth.exceptions
import pytest
import requests
from botocore import exceptions
from botocore.exceptions import ClientError
from memory_bucket import fill

from csdn.data import storage
from csdn.data.storage import Store, StoredObject
from csdn.runtime.errors import ServiceUnavailable, UserError

URL = {"endpoint_url": "http://store/bucket/key"}


def answer(status: int, code: str = "", message: str = "") -> ClientError:
    about = {"Error": {"Code": code, "Message": message}, "ResponseMetadata": {"HTTPStatusCode": status}}
    return ClientError(about, "GetObject")


@pytest.fixture
def clock(monkeypatch):
    """A clock that only sleeping advances; the sleeps."""
    waits = []
    monkeypatch.setattr(storage.time, "sleep", waits.append)
    monkeypatch.setattr(storage.time, "monotonic", lambda: sum(waits))
    return waits


def ask(*errors: Exception, timeout: float = 60) -> str:
    """The response after these errors."""
    waiting = iter(errors)

    def request() -> str:
        for error in waiting:
            raise error
        return "answer"

    return storage.with_retries(request, "s3://bucket/key", lambda: "http://store", timeout)


@pytest.mark.parametrize(
    "error",
    [
        answer(500, "InternalError"),
        answer(503, "SlowDown"),
        answer(429, "TooManyRequests"),
        answer(400, "RequestTimeout"),
        exceptions.EndpointConnectionError(**URL),
        exceptions.ConnectTimeoutError(**URL),
        exceptions.ReadTimeoutError(**URL),
        exceptions.ConnectionClosedError(**URL),
        exceptions.IncompleteReadError(actual_bytes=1, expected_bytes=2),
    ],
)
def test_requests_are_repeated_while_the_store_is_down(error, clock):
    assert ask(*[error] * 5) == "answer"
    assert len(clock) == 5
    assert all(0.5 * 0.1 * 2**n <= wait <= 0.1 * 2**n for n, wait in enumerate(clock))


def test_retries_end_at_the_timeout(clock):
    with pytest.raises(UserError, match=r"http://store does not respond \(no connection; tried for \d+ s\)"):
        ask(*[exceptions.EndpointConnectionError(**URL)] * 1000)
    assert 50 < sum(clock) <= 60 and max(clock) <= 4
    clock.clear()
    with pytest.raises(UserError, match="does not respond"):
        ask(*[exceptions.ReadTimeoutError(**URL)] * 1000, timeout=storage.FIRST_TIMEOUT)
    assert sum(clock) <= storage.FIRST_TIMEOUT


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (answer(403, "AccessDenied"), "this key may not do that"),
        (answer(403, "403"), "this key may not do that"),
        (answer(400, "ExpiredToken"), "not valid, or not any more"),
        (answer(301, "301"), "in another region; set AWS_DEFAULT_REGION"),
        (answer(400, "AuthorizationHeaderMalformed"), "in another region; set AWS_DEFAULT_REGION"),
        (answer(403, "RequestTimeTooSkewed"), "clock is wrong"),
        (answer(400, "EntityTooLarge", "Too large."), "the store refuses: Too large."),
        (exceptions.SSLError(**URL, error="certificate"), "SSL validation failed"),
    ],
)
def test_a_permanent_error_is_raised_at_once(error, says, clock):
    with pytest.raises(UserError, match=f"s3://bucket/key: .*{says}"):
        ask(error)
    assert clock == []


def test_a_missing_object_is_not_a_missing_store(clock):
    for error in (answer(404, "NoSuchKey"), answer(404, "404")):
        with pytest.raises(FileNotFoundError, match="s3://bucket/key"):
            ask(error)
    with pytest.raises(UserError, match="there is no such bucket"):
        ask(answer(404, "NoSuchBucket"))


@pytest.mark.parametrize("address", ["data/shards", "s3://", "s3:///prefix", "ftp://bucket/x"])
def test_an_address_that_is_not_of_an_object_store_is_refused(address):
    with pytest.raises(UserError, match=r"it is s3://bucket/prefix"):
        Store(address)


def test_a_store_is_pickled_without_its_connection():
    store = Store("s3://bucket/prefix/")
    again = pickle.loads(pickle.dumps(store))
    assert (again.protocol, again.root) == ("s3", "bucket/prefix")


def test_one_file_system_serves_all_stores_of_a_process():
    assert Store("memory://a/x").filesystem is Store("memory://b").filesystem


def test_a_mistake_of_this_program_is_not_an_error_of_the_store(clock):
    with pytest.raises(ZeroDivisionError):
        ask(ZeroDivisionError())


@pytest.fixture
def store(tmp_path):
    fill("store", {"in/a.jpg": b"abcdef"})
    return Store("memory://store/in")


def listed(store):
    (found,) = store.objects()
    return found


def test_bytes_that_are_not_those_listed_are_asked_for_again_and_then_named(store, monkeypatch):
    """The transfer is at fault, not the image: nobody may refuse it for that."""
    answers = iter([b"abc", b"abcdef", b"abcdefg" * 9, b"ab"])
    monkeypatch.setattr(store.filesystem, "cat_file", lambda path: next(answers))
    assert store.read(listed(store)) == b"abcdef"
    with pytest.raises(ServiceUnavailable, match=r"memory://store/in/a\.jpg: the store sent other bytes"):
        store.read(listed(store))


def test_a_flipped_bit_is_found_by_the_md5(store, monkeypatch):
    md5 = hashlib.md5(b"abcdef", usedforsecurity=False).hexdigest()
    listed = StoredObject("a.jpg", 6, md5)
    assert store.read(listed) == b"abcdef"
    monkeypatch.setattr(store, "find", lambda name: listed)  # memory:// gives no etags
    monkeypatch.setattr(store.filesystem, "cat_file", lambda path: b"abcdeg")
    with pytest.raises(ServiceUnavailable, match="other bytes"):
        store.read(listed)
    assert store.read(StoredObject("a.jpg", 6, f"{md5}-2")) == b"abcdeg"  # of an upload in parts: no MD5


def test_a_wrong_range_is_asked_for_again(store, monkeypatch):
    asked = []
    intact = store.filesystem.cat_ranges

    def cat_ranges(paths, starts, ends, **options):
        asked.append(len(paths))
        got = intact(paths, starts, ends, **options)
        return [got[0][:1], *got[1:]] if len(asked) == 1 else got

    monkeypatch.setattr(store.filesystem, "cat_ranges", cat_ranges)
    assert store.ranges([("a.jpg", 0, 3), ("a.jpg", 2, 2)]) == [b"abc", b"cd"]
    assert asked == [2, 1]


def raised(call):
    """The error with its traceback, as a request raises it."""
    try:
        call()
    except Exception as error:
        return error
    raise AssertionError("nothing was raised")


@pytest.mark.parametrize(
    "error",
    [
        requests.exceptions.ProxyError(),  # what gcsfs makes of 502
        requests.exceptions.ConnectionError(),
        google.auth.exceptions.TransportError("no connection"),
        gcsfs.retry.HttpError({"code": 503, "message": "busy"}),
        answer(400, "BadDigest"),
    ],
)
def test_an_outage_of_another_store_is_one_too(error, clock):
    assert ask(*[error] * 3) == "answer"


def test_a_refusal_that_gcsfs_raises_as_a_python_error_is_the_user_s(clock):
    refused = raised(lambda: gcsfs.retry.validate_response(400, b'{"error": {"message": "invalid"}}', "b/x"))
    assert isinstance(refused, ValueError)
    with pytest.raises(UserError, match="Bad Request"):
        ask(refused)
    forbidden = raised(lambda: gcsfs.retry.validate_response(403, b"", "b/x"))
    with pytest.raises(UserError, match="these credentials may not do that"):
        storage.with_retries(lambda: (_ for _ in ()).throw(forbidden), "gs://b/x", lambda: "google", 0)


def test_more_bytes_than_were_asked_for_are_no_image(store, monkeypatch):
    monkeypatch.setattr(store.filesystem, "cat_ranges", lambda *_, **__: [b"abcd"])
    with pytest.raises(ServiceUnavailable, match="more bytes than were asked for"):
        store.ranges([("a.jpg", 0, 3)])


def test_a_bucket_that_is_not_there_is_named(tmp_path):
    fill("other", {"a": b"1"})
    for request in (Store("memory://none/in").check, Store("memory://none/in").folders):
        with pytest.raises(UserError, match="memory://none/in: there is no such bucket"):
            request()
