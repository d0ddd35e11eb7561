"""No secret of the environment or of DVC's configuration gets into anything that a run writes or shows."""

from __future__ import annotations

import base64
import json
import shutil
import traceback
import zlib

import pytest
import yaml
from command_line import csdn
from make_images import write
from repository import git
from user_secrets import SECRETS, needles
from workspace import ROOT

from csdn.cluster.session import _unusable
from csdn.data import storage
from csdn.data.storage import Store
from csdn.ingest.ledger import LEDGER, read_ledger, write_ledger
from csdn.params import load_params
from csdn.runtime.errors import UserError
from csdn.runtime.sanitize import has_credentials

OWN = ".dvc/config.local"  # where a user keeps the remote's key; Git ignores it


def texts_in(data):
    """Bytes as they are, and uncompressed where Git or zlib packed them."""
    yield data
    try:
        yield zlib.decompress(data)
    except zlib.error:
        return


def files_with_a_secret(folder):
    found = []
    for path in sorted(folder.rglob("*")):
        if path.is_file() and str(path.relative_to(folder)) != OWN:
            hits = {needle for text in texts_in(path.read_bytes()) for needle in needles() if needle in text}
            found += [(str(path.relative_to(folder)), hit) for hit in hits]
    return found


@pytest.mark.slow
def test_a_run_writes_and_prints_no_secret(finished_repository, tmp_path):
    """Looked through: shards, index, models, metrics, report, DVC's cache and logs, Git after a commit."""
    folder, output = finished_repository
    committed = shutil.copytree(folder, tmp_path / "project", symlinks=True)
    git(committed, "add", "--all")
    git(committed, "commit", "--quiet", "--message", "everything that Git does not ignore")
    assert len(list((committed / ".dvc/cache").rglob("*"))) > 20
    assert files_with_a_secret(committed) == []
    assert [needle for needle in needles() if needle in output.encode()] == []
    assert OWN not in git(committed, "ls-files")


def test_the_search_finds_a_secret_however_it_is_packed(tmp_path):
    secret = SECRETS["AWS_SECRET_ACCESS_KEY"].encode()
    for name, data in {
        "raw": b"x" + secret,
        "packed": zlib.compress(b"x" + secret),
        **{f"base64 {n}": base64.b64encode(b"x" * n + secret + b"y") for n in range(3)},
    }.items():
        write(tmp_path / name, data)
    assert {name for name, _ in files_with_a_secret(tmp_path)} == {path.name for path in tmp_path.iterdir()}


WITH_A_KEY = [
    "s3://AKIAHUSH7:hush/7+Secret@bucket/in",
    "https://ana:hush7@host/in",
    "s3://bucket/in?X-Amz-Signature=hush7",
    "ray://ana:hush7@head:10001",
    "s3://hush7@bucket/in",
    "s3://bucket/x?access_key=AKIA&secret_key=hush7",
    "az://container/b?sv=1&sig=hush7@",
]
WITHOUT = [
    "s3://bucket/in",
    "s3://cams/2026-11-28T10:15@north",
    "gs://b/why?",
    "builtin:demo",
    "/data/a:b@c",
    "ray://head:10001",
    "head:6379",
    "C:/in@home",
]


@pytest.fixture
def project(tmp_path, monkeypatch):
    shutil.copy(ROOT / "params.yaml", tmp_path)
    monkeypatch.chdir(tmp_path)
    write_ledger([])
    return tmp_path


def test_an_address_with_a_key_is_known_from_one_without():
    assert [address for address in WITH_A_KEY if not has_credentials(address)] == []
    assert [address for address in WITHOUT if has_credentials(address)] == []


@pytest.mark.parametrize("address", WITH_A_KEY)
def test_no_drop_is_added_by_an_address_with_a_key(address, project, fault):
    with pytest.raises(UserError, match="has a key or password in it") as error:
        csdn("add", address)
    assert "hush" not in str(error.value).lower()
    assert read_ledger() == []
    if address == WITH_A_KEY[0]:
        fault("ledger", "csdn add s3://KEY:SECRET@bucket/in", error.value)


@pytest.mark.parametrize(
    ("key", "what"),
    [
        ("ingest.watch", "a place of ingest.watch has a key in it"),
        ("ingest.store", "ingest.store has a key in it"),
        ("report.store", "report.store has a key in it"),
        ("scaling.address", "scaling.address has a password in it"),
    ],
)
@pytest.mark.parametrize("address", WITH_A_KEY)
def test_no_parameter_is_an_address_with_a_key(key, what, address, project, fault):
    params = yaml.safe_load((project / "params.yaml").read_text())
    section, _, name = key.partition(".")
    params[section][name] = [address] if name == "watch" else address
    (project / "params.yaml").write_text(yaml.safe_dump(params))
    with pytest.raises(UserError, match="a key or password in it") as error:
        load_params()
    assert "hush" not in str(error.value).lower()
    if address == WITH_A_KEY[0]:
        fault("parameters", what, error.value)


def test_a_ledger_that_somebody_wrote_a_key_into_is_refused_without_showing_it(project, fault):
    entry = {"id": "a" * 64, "address": WITH_A_KEY[0], "layout": "cameras"}
    entry |= {"status": "accepted", "reason": ""}
    LEDGER.write_text(json.dumps({"version": 1, "drops": [entry]}))
    with pytest.raises(UserError, match="has a key or password in it") as error:
        read_ledger()
    assert "hush" not in str(error.value).lower()
    fault("ledger", "an address in the ledger has a key in it", error.value)


@pytest.mark.parametrize(
    "endpoint",
    [
        "http://127.0.0.1:9/?token=hush7",
        "http://127.0.0.1:9/path?a=1&token=hush7",
        "http://127.0.0.1:9/#hush7",
        "http://ana:hush7@127.0.0.1:9",
        "ftp://store/?hush7",
        "store:9000?token=hush7",
        "http://[::1/?hush7",
    ],
)
def test_an_error_of_a_store_does_not_show_the_secrets_of_its_endpoint(endpoint, monkeypatch):
    """AWS_ENDPOINT_URL may be a signed link; nor does the traceback show it that a log of Prefect has."""
    for name, value in {**SECRETS, "AWS_ENDPOINT_URL": endpoint}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(storage, "FIRST_TIMEOUT", 0.0)
    with pytest.raises(UserError, match="s3://bucket/in: ") as error:
        Store("s3://bucket/in").check()
    shown = "".join(traceback.format_exception(error.value))
    assert "hush7" not in shown, shown


def test_an_error_shows_addresses_without_their_secrets_and_names_of_objects_as_they_are():
    said = "from https://ana:hush7@host/in?token=hush7: s3://bucket/img?1.jpg, ray://x:hush7@head:1, a@b?c"
    assert str(UserError(said)) == (
        "from https://***@host/in?*** s3://bucket/img?1.jpg, ray://***@head:1, a@b?c"
    )


def test_a_cluster_that_does_not_answer_is_named_without_its_password():
    message = str(_unusable("ray://ana:hush7@head:10001", OSError("no route")))
    assert "head:10001" in message and "hush7" not in message
