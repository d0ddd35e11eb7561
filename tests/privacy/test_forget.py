"""Forgetting a person: afterwards nothing of them is left in any place that can be reached, everybody else is
as before, and every version of the model can still be fetched.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from forgettable import make_gallery, make_world, people_by, write_outputs
from repository import git
from safetensors.numpy import load_file
from workspace import environment, run, set_params

import csdn
from csdn.curation.relabel import EditedRow, relabelled
from csdn.data.catalog import load_dataset
from csdn.data.checkpoint_store import clone_name, folder_name
from csdn.data.shards import open_shards
from csdn.ingest.forgotten import Forgotten, read_forgotten
from csdn.ingest.ledger import Status, list_records, read_ledger, write_ledger
from csdn.ingest.sources import open_source
from csdn.ingest.sync import drop_fingerprint
from csdn.params import load_params
from csdn.privacy import places
from csdn.privacy.forget import forget
from csdn.privacy.objects import Objects
from csdn.privacy.places import replace_outputs
from csdn.privacy.plan import plan, plan_lines
from csdn.privacy.rewrite import Removal
from csdn.privacy.rewrite import images_of as shard_images
from csdn.privacy.verify import verify
from csdn.retraining.branches import READY
from csdn.retraining.handover import checkpoint_folders
from csdn.retraining.registry import promote_ready, record
from csdn.retraining.versions import fetch_champion
from csdn.retraining.workspace import begin
from csdn.runtime.errors import UserError
from csdn.search.gallery import Gallery
from csdn.training.champion import read_champion

pytestmark = pytest.mark.slow
OUTPUTS = ("data/", "models/", "evaluation/", "report/", "metrics/")


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Two versions of a model, made once; each test has a copy at the address that the ledger names."""
    base = tmp_path_factory.mktemp("world")
    make_world(base)
    shutil.copytree(base, base.with_name("saved"), symlinks=True)
    return base


@pytest.fixture
def world(saved, monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    shutil.rmtree(saved)
    shutil.copytree(saved.with_name("saved"), saved, symlinks=True)
    return saved / "project"


def tree(folder: Path) -> dict[str, str]:
    """Path -> hash of every file, without what Git and DVC write when they look."""
    files = {path: path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    return {
        name: hashlib.sha256(path.read_bytes()).hexdigest()
        for path, name in files.items()
        if not name.startswith(("project/.dvc/tmp/", "project/.git/index"))
    }


def left(project: Path, person: str, work: Path, galleries=()) -> list[str]:
    found = plan(project, person, work)
    missing = found.survey.missing
    result = verify(project, found.params, found.removal, found.objects, missing, galleries)
    return list(map(str, result.traces))


def pixels(data: Path) -> dict[str, bytes]:
    """Key -> bytes of every image that the tables name, as the shards have them."""
    found = {}
    for table in (load_dataset(data).train_table(), load_dataset(data).test_table()):
        names = [table.shard_names[n] for n in table.shard]
        shards = open_shards(data / "shards")
        images = shards.read_all(list(zip(names, table.offset.tolist(), table.size.tolist(), strict=True)))
        found |= {table.key(n): image for n, image in enumerate(images)}
    assert all(hashlib.sha256(image).hexdigest() == key for key, image in found.items())
    return found


def test_a_dry_run_says_what_would_be_done_and_changes_nothing(world, tmp_path):
    person, before = people_by("train", world)[0], tree(world.parent)
    lines = "\n".join(plan_lines(plan(world, person, tmp_path)))
    assert "6 images in 1 shards" in lines and "trained on the person: v1, v2" in lines
    assert tree(world.parent) == before


def test_a_training_person_is_forgotten_everywhere_and_everything_else_goes_on(world, tmp_path, monkeypatch):
    person, other = people_by("train", world)[:2]
    gallery = make_gallery(str(tmp_path / "gallery"), world)
    fetch_champion(world, "v2", world / "champion")
    images = len(gallery)
    row = load_dataset(world / "data").people["person"].to_pylist().index(person)
    before, weights = pixels(world / "data"), load_file(world / "models/embedding/model.safetensors")
    assert len({trace.split(":")[0] for trace in left(world, person, tmp_path, [gallery.address])}) >= 5

    result = forget(world, person, "asked in a letter", [gallery.address], shared=True)
    assert result.traces == [] and left(world, person, tmp_path, [gallery.address]) == []

    # Nobody else's image, row, or weights have changed; the person's row is a tombstone.
    people = load_dataset(world / "data").people["person"].to_pylist()
    assert people[row].startswith("forgotten-") and other in people
    after = pixels(world / "data")
    assert len(after) == len(before) - 6 and after == {key: before[key] for key in after}
    config = json.loads((world / "models/embedding/config.json").read_text())
    assert config["people"][0] == people[row]
    for name, tensor in load_file(world / "models/embedding/model.safetensors").items():
        rows = "prompts.tokens" in name or "classifier" in name
        assert (
            np.array_equal(tensor[rows:], weights[name][rows:]) if rows else (tensor == weights[name]).all()
        )
        assert not rows or not tensor[0].any()

    # Ingest makes the same tables from the drop without the person's files.
    stored = {name: (world / "data" / name).read_bytes() for name in ("samples.parquet", "people.parquet")}
    assert not list((world.parent / "in").rglob(f"*{person}*"))
    run(world, "dvc", "repro", "ingest")
    assert {name: (world / "data" / name).read_bytes() for name in stored} == stored
    git(world, "checkout", "--quiet", ".")

    # Every version can be fetched, here and in a new clone, and names no forgotten person.
    for version in ("v1", "v2"):
        fetch_champion(world, version, tmp_path / version)
        assert person not in (tmp_path / version / "embedding/config.json").read_text()
        assert csdn.load(tmp_path / version / "embedding")
        table = load_dataset(tmp_path / version / "data").test_table()
        assert all((world / "data/shards" / name).exists() for name in table.shard_names)
    git(world.parent, "clone", "--quiet", "origin.git", "clone")
    monkeypatch.chdir(world.parent / "clone")
    fetch_champion(Path(), "v1", Path("champion"))
    assert left(world.parent / "clone", person, tmp_path) == []

    # No training starts from a model that knew the person; the gallery is one of the new file of weights.
    assert read_forgotten(world / "data/forgotten.json").versions == {"v1", "v2"}
    assert read_champion(world).start is None
    gallery = Gallery.open(gallery.address)
    assert len(gallery) == images - 6
    assert gallery.manifest.model == read_champion(world).champion.embedding


def test_without_shared_what_other_clones_may_use_stays_and_is_listed(world, tmp_path):
    lines = []
    person = people_by("test", world)[0]
    result = forget(world, person, note=lines.append)
    assert {trace.place for trace in result.traces} == {"the DVC remote store"}
    assert any("--shared removes them" in line for line in lines)
    assert read_champion(world).start.version == "v1"  # nobody was trained on a test person
    assert forget(world, person, shared=True).traces == []  # the same command goes on


def test_another_clone_is_cleaned_by_the_same_command(world, tmp_path):
    person = people_by("train", world)[0]
    git(world.parent, "clone", "--quiet", "origin.git", "clone")
    clone = world.parent / "clone"
    run(clone, "dvc", "pull")
    forget(world, person, shared=True)
    git(clone, "pull", "--quiet")
    assert left(clone, person, tmp_path)
    assert forget(clone, person).traces == []
    assert load_dataset(clone / "data").people.equals(load_dataset(world / "data").people)


def test_a_second_person_can_be_forgotten_too(world, tmp_path):
    first, second, *_ = people_by("train", world)
    forget(world, first, shared=True)
    assert forget(world, second, shared=True).traces == []
    assert left(world, first, tmp_path) == []
    fetch_champion(world, "v1", tmp_path / "v1")
    assert len(pixels(world / "data")) == (16 - 2) * 6


def test_relabelled_images_and_aliases_of_the_person_go_too(world, tmp_path):
    """A label that was corrected to the person, an alias, what an earlier `dvc repro` left in the cache."""
    person, other, *_ = people_by("train", world)
    ledger = read_ledger(world / "data/drops.json")
    path = f"visible/north/{other}/0.jpg"
    labels = {path: person.upper(), f"visible/north/{other}/1.jpg": "somebody's twin"}
    relabelled = [replace(ledger[0], labels=labels, id="f" * 64), *ledger[1:]]
    source = open_source(ledger[0].address, "cameras")
    listing = drop_fingerprint(source, list_records(source, relabelled[0]), ledger[0].address)
    write_ledger([replace(relabelled[0], id=listing), ledger[1]], world / "data/drops.json")
    (world / "data/aliases.json").write_text(json.dumps({"Somebody's Twin": person}))
    run(world, "dvc", "repro", "ingest")  # its outputs of before are in the cache, and named by Git
    git(world, "commit", "--quiet", "--all", "--message", "labels")
    git(world, "push", "--quiet", "origin", "main")

    result = forget(world, "somebody's twin", shared=True)
    assert {trace.place for trace in result.traces} == {"Git"}  # the ledger and the aliases of that commit
    assert not (Path(ledger[0].address) / path).exists()
    assert json.loads((world / "data/aliases.json").read_text()) == {}
    assert person not in (world / "data/drops.json").read_text().casefold()
    assert read_ledger(world / "data/drops.json")[0].labels == {}
    assert len(pixels(world / "data")) == 16 * 6 - 8
    run(world, "dvc", "repro", "ingest")
    assert len(pixels(world / "data")) == 16 * 6 - 8


def test_the_same_command_goes_on_under_an_alias_in_another_clone(world):
    """The commit takes the alias out of data/aliases.json, and the clone's files have the main name."""
    person = people_by("train", world)[0]
    git(world.parent, "clone", "--quiet", "origin.git", "clone")
    clone = world.parent / "clone"
    run(clone, "dvc", "pull")
    (world / "data/aliases.json").write_text(json.dumps({"Nickname": person}))
    git(world, "commit", "--quiet", "--all", "--message", "alias")
    git(world, "push", "--quiet", "origin", "main")
    forget(world, "nickname", shared=True)
    git(clone, "pull", "--quiet")
    result = forget(clone, "nickname")
    assert {trace.name.split(" (")[0] for trace in result.traces} == {"data/aliases.json"}  # of that commit
    assert load_dataset(clone / "data").people.equals(load_dataset(world / "data").people)


def test_an_image_whose_label_was_corrected_is_somebody_elses(world):
    """The folder says `person`, `csdn relabel` said `other`; ingest has not read the correction yet."""
    person, other, *_ = people_by("train", world)
    first, second = read_ledger(world / "data/drops.json")
    path = f"visible/north/{person}/0.jpg"
    corrected, _ = relabelled(first, [EditedRow(path, other, {})], "labels.csv")
    rejected = replace(first, status=Status.REJECTED, reason="relabelled")
    write_ledger([rejected, second, corrected], world / "data/drops.json")
    git(world, "commit", "--quiet", "--all", "--message", "labels")
    git(world, "push", "--quiet", "origin", "main")
    key = hashlib.sha256((Path(first.address) / path).read_bytes()).hexdigest()

    result = forget(world, person, shared=True)
    assert {trace.name.split(" (")[0] for trace in result.traces} == {path, "data/drops.json"}  # by the path
    assert (Path(first.address) / path).exists()
    run(world, "dvc", "repro", "ingest")
    people = load_dataset(world / "data").people["person"].to_pylist()
    samples = load_dataset(world / "data").samples.to_table().to_pylist()
    assert [people[row["person_row"]] for row in samples if row["key"] == key] == [other]
    assert len(samples) == 16 * 6 - 5


def test_a_ready_run_does_not_bring_a_forgotten_person_back(world):
    """Its outputs have the person, and main's may not differ from them."""
    ready = begin(world, lambda drops: drops, {"seed": 9})
    ready.commit("ready", READY)
    forget(world, people_by("train", world)[0])
    with pytest.raises(UserError, match="before a person was forgotten"):
        promote_ready(world, ready.id)
    with pytest.raises(UserError, match="before a person was forgotten"):
        record(ready, "undecided", ["few"])


def test_objects_that_no_commit_names_are_removed_with_shared_and_those_of_other_projects_stay(world):
    """Such as those of a `dvc repro` whose dvc.lock was never committed, or of a commit that another clone,
    which uses the same cache, has not pushed; another project uses the remote.
    """
    person = people_by("train", world)[0]
    write_outputs(world, seed=5)
    weights = (world / "models/embedding/model.safetensors").read_bytes()
    table = world / "evaluation/queries.parquet"
    pq.write_table(pq.read_table(table).slice(1), table)
    run(world, "dvc", "commit", "--force", "embedding", "evaluate")
    run(world, "dvc", "push")
    git(world, "checkout", "--quiet", ".")
    run(world, "dvc", "checkout", "--force")
    picture = next((world.parent / "in").rglob(f"{person}/*.jpg")).read_bytes()
    theirs, found = (stored(world.parent / "remote", data) for data in (f'["{person}"]'.encode(), picture))
    cached = stored(world / ".dvc/cache", f"of {person}".encode())

    lines = []
    places = {trace.place for trace in forget(world, person, note=lines.append).traces}
    assert places == {"the DVC remote store", "DVC's cache"}
    assert f"left: {world}/.dvc/cache/files/md5: 1 objects of DVC (--shared removes them)" in lines
    assert found.exists() and cached.exists() and object_of(world / ".dvc/cache", weights).exists()
    result = forget(world, person, shared=True)
    assert [trace.name for trace in result.traces] == [theirs.parent.name + theirs.name]
    assert not found.exists() and not cached.exists()
    assert not object_of(world / ".dvc/cache", weights).exists()  # the model's list of people was beside them


def test_what_somebody_keeps_with_dvc_beside_the_pipeline_stays_and_is_listed(world):
    """Of the working tree, and of a commit."""
    person = people_by("train", world)[0]
    for folder in ("old", "exports"):
        (world / folder).mkdir()
        for name in (person, "somebody", "else"):
            (world / folder / f"{name[:4]}.csv").write_text(f"image,person\n{folder},{name}\n")
        run(world, "dvc", "add", folder)
    git(world, "add", "--all")
    git(world, "commit", "--quiet", "--message", "exports")
    git(world, "rm", "--quiet", "old.dvc")
    shutil.rmtree(world / "old")
    git(world, "commit", "--quiet", "--message", "without the old ones")
    git(world, "push", "--quiet", "origin", "main")
    result = forget(world, person, shared=True)
    assert {trace.name for trace in result.traces if trace.place == "the workspace"} == {"exports/pers.csv"}
    assert len([trace for trace in result.traces if trace.place == "DVC's cache"]) == 2
    git(world, "checkout", "--quiet", "HEAD~2", "--", "old.dvc")
    run(world, "dvc", "checkout", "old", "exports")
    assert len(list((world / "exports").iterdir())) == len(list((world / "old").iterdir())) == 3


def test_a_gallery_behind_a_link_is_cleaned_too(world, tmp_path):
    person = people_by("train", world)[0]
    gallery = make_gallery(str(tmp_path / "disk/gallery"), world)
    images = len(gallery)
    (world / "galleries").symlink_to(tmp_path / "disk")
    assert forget(world, person, shared=True).traces == []
    assert len(Gallery.open(gallery.address)) == images - 6


def test_a_short_name_is_taken_out_of_texts_and_refused_in_the_reason(world):
    first, second = read_ledger(world / "data/drops.json")
    paths = sorted(path.relative_to(first.address).as_posix() for path in Path(first.address).rglob("*.jpg"))
    labels = {paths[0]: "Ann", paths[1]: "ANN"}
    given = replace(first, reason="checked: two pictures of Ann are dark", labels=labels)
    source = open_source(first.address, "cameras")
    listing = drop_fingerprint(source, list_records(source, given), first.address)
    write_ledger([replace(given, id=listing), second], world / "data/drops.json")
    run(world, "dvc", "repro", "ingest")
    assert "'Ann'" in (world / "metrics/ingest.json").read_text()
    git(world, "commit", "--quiet", "--all", "--message", "labels")
    git(world, "push", "--quiet", "origin", "main")
    with pytest.raises(UserError, match="--reason has the person's name"):
        forget(world, "ann", "Ann asked in a letter")
    forget(world, "ann", shared=True)
    reason = read_ledger(world / "data/drops.json")[0].reason
    assert reason.startswith("checked: two pictures of forgotten-") and reason.endswith(" are dark")
    assert "Ann" not in (world / "metrics/ingest.json").read_text()


def stored(remote: Path, data: bytes) -> Path:
    """Keep bytes in a DVC remote, as a command of another clone or project does."""
    path = object_of(remote, data)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


def object_of(folder: Path, data: bytes) -> Path:
    """Where DVC's cache or a remote keeps these bytes."""
    digest = hashlib.md5(data).hexdigest()
    return folder / "files/md5" / digest[:2] / digest[2:]


def test_outputs_of_runs_that_main_does_not_have_are_made_again_too(world, tmp_path):
    """Of a run that was rejected, in this clone, and in one that knows its branch from origin."""
    person = people_by("train", world)[0]
    refused = begin(world, lambda drops: drops, {"seed": 9})
    write_outputs(refused.folder, seed=9)
    run(refused.folder, "dvc", "commit", "--force", "embedding", "evaluate", "report")
    run(refused.folder, "dvc", "push")
    git(
        world,
        "push",
        "--quiet",
        "origin",
        f"{refused.commit('rejected', 'reject')}:refs/heads/{refused.branch}",
    )
    git(world.parent, "clone", "--quiet", "origin.git", "clone")
    assert forget(world.parent / "clone", person, shared=True).traces == []
    assert forget(world, person).traces == []
    assert read_forgotten(world / "data/forgotten.json").versions == {"v1", "v2"}


def test_checkpoints_of_this_clone_and_of_runs_are_removed_and_of_others_with_shared(world, tmp_path):
    place = tmp_path / "checkpoints"
    set_params(world, {"scaling.checkpoint_dir": str(place)})
    git(world, "commit", "--quiet", "--all", "--message", "a place for checkpoints")
    git(world, "push", "--quiet", "origin", "main")
    own = begin(world, lambda drops: drops, {"seed": 9})
    folders = [folder_name(f"run {own.id}"), clone_name(world / ".state"), "0123456789abcdef", "of my own"]
    for folder in folders:
        (place / folder / "key/attempt").mkdir(parents=True)
        (place / folder / "key/attempt/state.json").write_text("{}")
    person, lines = people_by("test", world)[0], []
    assert checkpoint_folders(world) == {folders[0]}
    forget(world, person, note=lines.append)
    assert sorted(path.name for path in place.iterdir()) == folders[2:]
    assert f"left: {place}: checkpoints of 1 clones or runs (--shared removes them)" in lines
    (place / folders[2] / "people.json").write_text(person)
    found = [trace for trace in forget(world, person).traces if trace.place == str(place)]
    assert [trace.name for trace in found] == [f"{folders[2]}/people.json"]
    assert forget(world, person, shared=True).traces == []
    assert [path.name for path in place.iterdir()] == ["of my own"]


def test_a_version_that_cannot_be_read_counts_as_trained_on_the_person(world):
    config = (world / "models/embedding/config.json").read_bytes()
    for folder in (world / ".dvc/cache", world.parent / "remote"):
        object_of(folder, config).unlink()
    result = forget(world, people_by("test", world)[0], shared=True)
    assert read_forgotten(world / "data/forgotten.json").versions == {"v2"}
    (line,) = (line for line in result.unreachable if line.startswith("version v2: "))
    assert "marked as if trained on the person" in line


def test_mistakes_are_told_before_anything_changes(world):
    head = git(world, "rev-parse", "HEAD")
    with pytest.raises(UserError, match="'person 99' is nobody"):
        forget(world, "person 99")
    with pytest.raises(UserError, match="--reason has the person's name"):
        forget(world, "person 01", "Person 01 asked")
    (world / "data/aliases.json").write_text('{"a": "b"}')
    with pytest.raises(UserError, match=r"not committed: data/aliases\.json"):
        forget(world, "person 01")
    assert git(world, "rev-parse", "HEAD") == head


KILLED = """
import os, sys
from pathlib import Path
from csdn.privacy.forget import forget
steps = iter(range(1000))
def note(line):
    if next(steps) == int(sys.argv[2]):
        os._exit(9)
forget(Path(), sys.argv[1], shared=True, note=note)
"""


def test_killed_at_any_step_the_same_command_ends_as_if_it_had_not_been(world, saved, tmp_path):
    person, lines = people_by("train", world)[0], []
    forget(world, person, shared=True, note=lines.append)
    stored = {name: value for name, value in tree(world / "data").items() if "forgotten" not in name}
    for step in range(1, len(lines), 4):  # before the commit, and after it
        shutil.rmtree(saved)
        shutil.copytree(saved.with_name("saved"), saved, symlinks=True)
        done = subprocess.run(
            [sys.executable, "-c", KILLED, person, str(step)], cwd=world, env=environment(), check=False
        )
        assert done.returncode == 9, lines[step]
        assert forget(world, person, shared=True).traces == [], lines[step]
        found = {name: value for name, value in tree(world / "data").items() if "forgotten" not in name}
        assert found == stored, lines[step]
        assert len(read_ledger(world / "data/drops.json")) == 2


class Killed(Exception):
    pass


def test_killed_before_any_file_of_the_workspace_the_next_call_ends_as_if_it_had_not_been(
    world, tmp_path, monkeypatch
):
    """What is left to do is read from files that are themselves replaced."""
    person, images = people_by("train", world)[0], images_of(people_by("train", world)[0], world)
    removal = Removal(frozenset({person}), frozenset(images), "forgotten-x")
    params, replaced = load_params(world / "params.yaml"), places._replace

    def call(files: int, name: str) -> dict[str, str]:
        """The outputs after a call that is killed when it has replaced this many files."""
        done = iter(range(files))

        def replace_or_die(path: Path, new: Path | None) -> None:
            if next(done, None) is None:
                raise Killed
            replaced(path, new)

        monkeypatch.setattr(places, "_replace", replace_or_die)
        objects = Objects(world, tmp_path / name)
        with suppress(Killed):
            replace_outputs(world, tmp_path / name, params, Forgotten(), removal, objects)
        return {name: value for name, value in tree(world).items() if name.startswith(OUTPUTS)}

    before = {path: path.read_bytes() for path in world.rglob("*") if path.is_file()}
    expected = call(99, "all")
    files = sum(path.exists() is False or path.read_bytes() != data for path, data in before.items())
    assert files >= 10
    for killed in range(files):
        for path, data in before.items():
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(data)
        assert call(killed, f"killed-{killed}") != expected
        assert call(99, f"again-{killed}") == expected, killed


def images_of(person: str, project: Path) -> set[str]:
    """SHA-256 of a person's images in use."""
    dataset = load_dataset(project / "data")
    row = dataset.people["person"].to_pylist().index(person)
    samples = dataset.samples.to_table().to_pylist()
    return {sample["key"] for sample in samples if sample["person_row"] == row}


def test_a_damaged_shard_is_not_written_again(world):
    """DVC's cache has it undamaged."""
    person, before = people_by("train", world)[0], set((world / "data/shards").glob("*.tar"))
    for path in before:
        data = bytearray(path.read_bytes())
        path.unlink()
        data[600] ^= 1  # a byte of the first image
        path.write_bytes(data)
    forget(world, person, shared=True)
    new = set((world / "data/shards").glob("*.tar")) - before
    assert new
    for path in new:
        for image in shard_images(path, path.name):
            assert hashlib.sha256(image.data).hexdigest() == image.key


def test_what_is_no_gallery_does_not_stop_the_removal(world):
    (world / "exports").mkdir()
    (world / "exports/gallery.json").write_text("[]")
    lines = []
    assert forget(world, people_by("train", world)[0], shared=True, note=lines.append).traces == []
    assert any(line.startswith(f"not reached: {world}/exports") for line in lines)
