"""Drops, shards and reports in an object store are the same as in folders; worker processes read them too."""

from __future__ import annotations

import multiprocessing
import pickle
import re
import shutil
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from feed_data import train_source
from make_images import Project, make_drop, people_named, write
from workspace import ROOT, set_params

from csdn.cli import doctor
from csdn.data.catalog import SAMPLES_SCHEMA, SampleTable, load_dataset, read_table
from csdn.data.loader import TrainLoader
from csdn.data.shards import StoredPlace, open_shards
from csdn.data.storage import Store, durable_filesystem
from csdn.ingest import pack as packing
from csdn.ingest.ledger import Status, decide, read_ledger, write_ledger
from csdn.ingest.sync import sub_folders
from csdn.report.page import publish
from csdn.runtime.errors import UserError

pytestmark = pytest.mark.slow


@pytest.fixture
def drop(tmp_path, monkeypatch):
    """A drop of six shards."""
    monkeypatch.setattr(packing, "SHARD_IMAGES", 10)
    return make_drop(tmp_path / "drop", people_named(10))


@pytest.fixture
def local(tmp_path, drop):
    return ingested(tmp_path / "local", drop)


@pytest.fixture
def place(request):
    """A prefix of its own for each test."""
    return f"s3://cameras/{re.sub(r'[^a-z0-9]+', '-', request.node.name)}/shards"


@pytest.fixture
def remote(s3_server, tmp_path, drop, place):
    return ingested(tmp_path / "remote", drop, store=place)


def ingested(root: Path, drop: Path | str, processes: int = 1, **settings) -> Project:
    project = Project(root, processes)
    project.add(drop)
    project.ingest(**settings)
    return project


def contents(place: str) -> dict[str, bytes]:
    store = Store(place)
    return {found.name: store.read(found) for found in store.objects()}


def local_shards(project: Project) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (project.data / "shards").iterdir()}


def feed_of(table: SampleTable, at: str | Path, processes: int) -> TrainLoader:
    place = at if isinstance(at, Path) else StoredPlace(at)
    return TrainLoader(train_source(table, place), processes)


def samples(project: Project) -> list[dict]:
    rows = read_table(project.data / "samples.parquet", SAMPLES_SCHEMA).to_pylist()
    return [{k: v for k, v in row.items() if k not in ("drop", "shard")} for row in rows]


def test_a_drop_in_a_bucket_is_the_same_as_in_a_folder(s3_server, tmp_path, monkeypatch):
    folder = make_drop(tmp_path / "drop", people_named(10))
    for path in folder.rglob("*"):
        if path.is_file():
            s3_server.bucket.upload_file(str(path), f"in/monday/{path.relative_to(folder).as_posix()}")
    assert sub_folders("s3://cameras/in") == ["s3://cameras/in/monday"]
    monkeypatch.setattr(packing, "SHARD_IMAGES", 25)
    addresses = {"local": folder, "remote": "s3://cameras/in/monday"}
    tables = [samples(ingested(tmp_path / name, one, processes=2)) for name, one in addresses.items()]
    assert tables[0] == tables[1]


def test_a_prefix_without_anything_is_an_error_that_names_it(s3_server, tmp_path, fault):
    with pytest.raises(UserError, match="s3://cameras/nothing: nothing there") as error:
        Project(tmp_path).add("s3://cameras/nothing")
    fault("drops and images", "an s3:// prefix without anything", error.value)


@pytest.mark.parametrize("processes", [1, 2])
def test_shards_in_a_store_are_those_of_a_folder(s3_server, tmp_path, drop, local, place, processes):
    remote = ingested(tmp_path / "remote", drop, processes, store=place)
    assert local_shards(remote) == {}
    assert contents(place) == local_shards(local)
    assert len(contents(place)) == 6
    kept = {name: data for name, data in local.outputs().items() if "/shards/" not in name}
    assert remote.outputs() == kept


@pytest.mark.parametrize("processes", [0, 2])
def test_the_feed_from_a_store_gives_the_same_bits(local, remote, place, processes):
    feeds = [
        feed_of(load_dataset(root).train_table(), at, processes)
        for root, at in ((local.data, local.data / "shards"), (remote.data, place))
    ]
    for epoch in (0, 1):
        batches = [list(feed.epoch(epoch)) for feed in feeds]
        assert len(batches[0]) > 2
        for one, other in zip(*batches, strict=True):
            for name in ("visible_view1", "visible_view2", "infrared", "labels"):
                assert torch.equal(getattr(one, name), getattr(other, name))


@pytest.mark.parametrize("processes", [0, 2])
def test_from_the_second_epoch_on_the_store_is_not_asked(
    s3_server, local, remote, place, processes, tmp_path
):
    """Each shard is fetched once, though two processes want it at the same time."""
    prefix = f"/{place.removeprefix('s3://')}"
    before = s3_server.requests("GET", prefix)
    cached = StoredPlace(place, tmp_path / "cache", 10**9)
    made = TrainLoader(train_source(load_dataset(remote.data).train_table(), cached), processes)
    expected = feed_of(load_dataset(local.data).train_table(), local.data / "shards", 0)
    for epoch in range(3):
        for one, other in zip(expected.epoch(epoch), made.epoch(epoch), strict=True):
            assert torch.equal(one.visible_view1, other.visible_view1)
        if epoch == 0:
            first = s3_server.requests("", prefix)
            used = list((tmp_path / "cache").glob("*.tar"))
            assert 0 < s3_server.requests("GET", prefix) - before <= len(used)
    wanted = len(list((tmp_path / "cache").glob("*.tar"))) - len(used)  # by a later epoch alone
    assert s3_server.requests("", prefix) - first <= 2 * wanted


def test_what_is_in_the_store_is_not_sent_again(remote, drop, place, tmp_path, monkeypatch):
    sent = []
    monkeypatch.setattr(Store, "put", lambda *what: sent.append(what))
    remote.ingest(store=place)
    ingested(tmp_path / "another clone", drop, store=place)
    assert sent == []


def test_a_stopped_ingest_goes_on_behind_the_shards_in_the_store(s3_server, tmp_path, drop, local, place):
    project, intact, packed = Project(tmp_path / "stopped"), packing.pack, []

    def pack(task):
        packed.append(task.stem[-6:])
        if len(packed) == 5:
            raise KeyboardInterrupt
        return intact(task)

    project.add(drop)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(packing, "pack", pack)
        with pytest.raises(KeyboardInterrupt):
            project.ingest(store=place)
        assert len(contents(place)) == 4
        project.ingest(store=place)
    assert packed[5:] == ["000004", "000005"]
    assert contents(place) == local_shards(local)
    assert local_shards(project) == {}


@pytest.mark.parametrize(
    ("kept", "what"),
    [(None, "a shard in an object store is gone"), (-20000, "a shard in an object store is cut")],
)
def test_a_missing_or_cut_object_is_named_and_made_again_from_its_drop(
    s3_server, remote, place, kept, what, fault
):
    before = contents(place)
    name = sorted(before)[2]
    broken = s3_server.bucket.Object(f"{place.removeprefix('s3://cameras/')}/{name}")
    broken.delete() if kept is None else broken.put(Body=before[name][:kept])
    with pytest.raises(UserError, match=rf"{name}: (no such object|ends before)") as error:
        open_shards(StoredPlace(place)).read_all([(name, len(before[name]) - 1000, 1000)])
    fault("shards and index", what, re.sub(r"byte \d+", "byte N", of_any_test(error.value, place)))
    notes = []
    remote.ingest(store=place, note=notes.append)
    assert len(notes) == 1 and f"{place}/{name}: was missing or damaged" in notes[0]
    assert contents(place) == before


def of_any_test(error: UserError, place: str) -> str:
    return str(error).replace(place, "s3://cameras/shards")


def test_a_missing_object_whose_drop_is_gone_is_an_error(s3_server, remote, drop, place, fault):
    name = sorted(contents(place))[2]
    s3_server.bucket.Object(f"{place.removeprefix('s3://cameras/')}/{name}").delete()
    drop.rename(drop.with_name("away"))
    with pytest.raises(UserError, match=f"{place}/{name}: missing or damaged") as error:
        remote.ingest(store=place)
    told = of_any_test(error.value, place)
    fault("shards and index", "a shard in an object store is gone, and so is its drop", told)


def test_an_altered_object_is_never_trained_on(s3_server, remote, place, fault):
    table = load_dataset(remote.data).train_table()
    name, first = table.shard_names[table.shard[0]], int(table.offset[0])
    content = bytearray(contents(place)[name])
    content[first + 200] ^= 1
    s3_server.bucket.Object(f"{place.removeprefix('s3://cameras/')}/{name}").put(Body=bytes(content))
    feed = feed_of(table, place, 0)
    with pytest.raises(
        UserError, match=f"{name}: the image at byte .* is not what ingest put there"
    ) as error:
        for epoch in range(20):
            list(feed.epoch(epoch))
    told = of_any_test(error.value, place).replace(f"byte {first}", "byte N")
    fault("shards and index", "one bit of an image was altered in an object store after ingest", told)


def test_shards_of_a_folder_move_into_a_store_that_is_named_later(s3_server, local, drop, place, monkeypatch):
    before = local_shards(local)
    drop.rename(drop.with_name("away"))
    notes = []
    local.ingest(store=place, note=notes.append)
    assert notes == []
    assert contents(place) == before
    assert local_shards(local) == {}


def test_a_shard_that_was_altered_on_this_machine_does_not_move(s3_server, local, drop, place):
    (local.data / "shards" / sorted(local_shards(local))[0]).write_bytes(b"x")
    drop.rename(drop.with_name("away"))
    before = local.outputs()
    with pytest.raises(UserError, match="missing or damaged"):
        local.ingest(store=place)
    assert local.outputs() == before


def test_a_shard_of_a_rejected_drop_stays_where_it_is(s3_server, local, tmp_path, place):
    """It may be accepted again when its images are gone."""
    before = local_shards(local)
    write_ledger(
        decide(read_ledger(local.ledger), read_ledger(local.ledger)[0].id, Status.REJECTED, "bad light"),
        local.ledger,
    )
    local.add(make_drop(tmp_path / "second", people_named(10, "other")))
    local.ingest(store=place)
    assert local_shards(local) == before
    assert len(contents(place)) == 6


def test_objects_of_others_stay(s3_server, remote, place):
    """Another clone, or an older commit, may name them."""
    s3_server.bucket.Object(f"{place.removeprefix('s3://cameras/')}/of-another-{'0' * 16}.tar").put(Body=b"x")
    remote.ingest(store=place)
    assert len(contents(place)) == 7


def test_a_store_gives_back_what_it_was_given(s3_server, tmp_path, place):
    store, data = Store(place), np.random.default_rng(0).bytes(3_000_000)
    store.put("a", write(tmp_path / "a", data))
    assert store.size("a") == len(data) and store.size("b") is None
    ranges = [("a", 1000, 10), ("a", len(data) - 5, 10), ("a", len(data), 10), ("a", 2_999_000, 500)]
    assert store.ranges(ranges) == [data[1000:1010], data[-5:], b"", data[2_999_000:2_999_500]]
    with pytest.raises(FileNotFoundError, match=f"{place}/b"):
        store.ranges([("a", 0, 5), ("b", 0, 10)])
    (listed,) = store.objects()
    assert (listed.name, listed.size) == ("a", len(data)) and store.read(listed) == data


def test_an_object_that_is_replaced_after_it_was_listed_is_noticed(s3_server, tmp_path, place):
    store = Store(place)
    store.put("a", write(tmp_path / "a", b"before"))
    (listed,) = store.objects()
    store.put("a", write(tmp_path / "a", b"after!"))
    with pytest.raises(UserError, match=f"{place}/a: was replaced after it was listed"):
        store.read(listed)


def test_every_character_of_a_key_is_part_of_the_key(s3_server, tmp_path, place):
    """Empty objects whose key ends with a slash are folders to some programs, and no files here."""
    names = ["a b+c%20.jpg", "10:15@north/x?.jpg", "Zoë/0.jpg", "dir//x.jpg", "tail /x.jpg", "[0]*.jpg"]
    prefix = f"{place.removeprefix('s3://cameras/')}/2026-11-28T10:15@north"
    for name in (*names, "dir/", ""):
        s3_server.bucket.put_object(Key=f"{prefix}/{name}", Body=name.encode())
    store = Store(f"s3://cameras/{prefix}")
    assert [(found.name, store.read(found)) for found in store.objects()] == [
        (name, name.encode()) for name in sorted(names)
    ]
    assert store.ranges([(name, 0, 3) for name in names]) == [name.encode()[:3] for name in names]
    assert Store(f"s3://cameras/{prefix}/dir").address in store.folders()


def test_a_report_s_copy_is_named_by_its_content(s3_server, tmp_path, place):
    page = write(tmp_path / "report/index.html", b"<p>figures</p>")
    write(tmp_path / "report/figures/cmc.png", b"\x89PNG")
    address = publish(page, place)
    assert publish(page, place) == address
    folder = address.removesuffix("/index.html")
    assert contents(folder) == {"index.html": page.read_bytes(), "figures/cmc.png": b"\x89PNG"}
    kind = s3_server.bucket.Object(address.removeprefix("s3://cameras/")).content_type
    assert kind == "text/html"


def test_the_doctor_asks_the_stores_of_the_parameters(s3_server, tmp_path):
    for name in ("params.yaml", "dvc.yaml"):
        shutil.copy(ROOT / name, tmp_path)
    set_params(tmp_path, {"ingest.store": "s3://cameras/in", "report.store": "s3://no-such-bucket/out"})
    first, second = (check for check in doctor.report(tmp_path) if check.name == "object store")
    assert (first.state, first.found) == ("ok", "s3://cameras/in responds")
    assert second.state == "problem" and "s3://no-such-bucket/out: there is no such bucket" in second.found


def test_checkpoints_of_ray_are_in_the_same_store(s3_server, tmp_path, place):
    from pyarrow.fs import FSSpecHandler, PyFileSystem

    filesystem, path = durable_filesystem(place)
    arrow = pickle.loads(pickle.dumps(PyFileSystem(FSSpecHandler(filesystem))))  # as Ray gives it to workers
    with arrow.open_output_stream(f"{path}/checkpoint/model") as file:
        file.write(b"weights")
    assert contents(place) == {"checkpoint/model": b"weights"}


def test_a_process_opens_its_own_connections(s3_server, remote, place):
    reader = open_shards(StoredPlace(place))
    name, data = sorted(contents(place).items())[0]
    ranges = [(name, 0, 100)] * 40
    assert reader.read_all(ranges) == [data[:100]] * 40
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        assert pool.submit(reader.read_all, ranges).result() == [data[:100]] * 40
    assert reader.read_all([(name, 9, 10)]) == [data[9:19]]
