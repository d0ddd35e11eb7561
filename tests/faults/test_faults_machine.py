"""The machine lacks something: a clear error, the old outputs whole, what was finished kept.

Each test is a process of its own under a real limit: RLIMIT_FSIZE, RLIMIT_AS, RLIMIT_NOFILE, a small or
read-only file system, rights taken away.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from make_images import Project, huge_png, make_drop, people_named, write

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]
REDUCE = {
    "ingest": "ingest.max_pixels",
    "embedding": "embedding.identities_per_batch or embedding.images_per_identity",
}
NAMESPACE = ("unshare", "--user", "--map-root-user", "--mount")
no_mounts = pytest.mark.skipif(
    shutil.which("unshare") is None
    or subprocess.run([*NAMESPACE, "mount", "-t", "tmpfs", "none", "/mnt"], capture_output=True).returncode,
    reason="this machine lets no process mount a file system of its own",
)

CLI = "from csdn.cli import main as cli"
BEGIN = """
import errno, os, resource, sys
from pathlib import Path
from csdn.runtime.files import atomic_folder, write_json
from csdn.runtime.process import run_stage
from csdn.data.checkpoint_store import open_state

def as_nobody():
    if os.geteuid() == 0:
        os.setgid(65534); os.setuid(65534)

def limit(what, value):
    number = getattr(resource, "RLIMIT_" + what)
    resource.setrlimit(number, (value, resource.getrlimit(number)[1]))

def more_memory(megabytes):
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    limit("AS", used + megabytes * 2**20)

def main():
"""


def run_main(
    folder: Path, *body: str, before: str = "", mount: str = "", stage: str = "embedding"
) -> subprocess.CompletedProcess[str]:
    """Run a stage whose `main` is `body`, in `folder`; `mount`: a command of a mount namespace."""
    script = BEGIN.replace("def main", before + "\ndef main") + "".join(f"    {line}\n" for line in body)
    script += f'if __name__ == "__main__":\n    run_stage(main, "{stage}", reduce="{REDUCE[stage]}")\n'
    write(folder.parent / "script.py", script.encode())
    command = [sys.executable, "../script.py"]
    if mount:
        command = [*NAMESPACE, "sh", "-c", f"{mount} && exec {' '.join(command)}"]
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT}/tests/support"}
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=60)


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "project").mkdir()
    return tmp_path / "project"


def error_of(run: subprocess.CompletedProcess[str]) -> str:
    """The error as the user sees it: no traceback."""
    assert run.returncode == 1, run.stderr
    assert "Traceback" not in run.stderr
    return run.stderr.strip().removeprefix("error: ")


# Imported before a limit or another user makes the files of libraries unreadable.
IMPORTS = """
import email.parser, fsspec.implementations.local, pandas, pyarrow.parquet, webdataset
import csdn.runtime.console
from make_images import Project
"""


def ingest_in(
    folder: Path, *first: str, processes: int = 1, mount: str = ""
) -> subprocess.CompletedProcess[str]:
    """Ingest the project in `folder` in a process of its own that does `first` before."""
    body = (*first, f"Project(Path(), processes={processes}).ingest()")
    return run_main(folder, *body, before=IMPORTS, mount=mount, stage="ingest")


def project_with_drop(folder: Path) -> Project:
    project = Project(folder)
    project.add(make_drop(folder.parent / "drop", people_named(10)))
    return project


@pytest.mark.parametrize("processes", [1, 2])
def test_a_full_disk_at_ingest(folder, processes, monkeypatch, fault):
    project = project_with_drop(folder)
    error = error_of(ingest_in(folder, "limit('FSIZE', 20_000)", processes=processes))
    assert not [path for path in project.data.rglob("*") if path.suffix in (".tar", ".parquet", ".partial")]
    project.ingest()
    other = project_with_drop(folder.parent / "other/project")
    other.ingest()
    assert project.outputs() == other.outputs()
    fault("disk and memory", "a shard would grow over the limit on file sizes (RLIMIT_FSIZE)", error)


@no_mounts
def test_a_full_file_system_at_ingest(folder, fault):
    project = project_with_drop(folder)
    project.ingest()
    before = project.outputs()
    project.add(make_drop(folder.parent / "more", people_named(200, "guest")))
    mount = "mkdir -p kept && cp -a data/shards/. kept && mount -t tmpfs -o size=200k none data/shards"
    error = error_of(ingest_in(folder, mount=f"{mount} && cp -a kept/. data/shards"))
    assert before.items() <= project.outputs().items()
    fault("disk and memory", "the disk is full while shards are written", error)


@no_mounts
def test_a_read_only_file_system(folder, fault):
    project = project_with_drop(folder)
    error = error_of(ingest_in(folder, mount="mount --bind data data && mount -o remount,bind,ro data"))
    assert project.outputs() == {}
    fault("disk and memory", "the outputs are on a read-only file system", error)


@no_mounts
def test_a_cache_of_shards_on_a_read_only_file_system(folder, fault):
    body = (
        "fsspec.filesystem('memory').pipe('/shards/a.tar', bytes(100))",
        "place = StoredPlace('memory://shards', Path('cache'), 1000)",
        "open_shards(place).read_all([('a.tar', 0, 10)])",
    )
    imports = "import fsspec\nfrom csdn.data.shards import StoredPlace, open_shards"
    mount = "mkdir cache && mount -t tmpfs -o ro none cache"
    error = error_of(run_main(folder, *body, before=imports, mount=mount))
    fault("object stores", "the folder of the cache of shards is read-only", error)


def test_folders_of_another_user(folder, fault):
    project = project_with_drop(folder)
    for path in (folder, *folder.rglob("*")):
        path.chmod(0o555 if path.is_dir() else 0o444)
    for path in folder.parents[:3]:
        path.chmod(0o755)
    error = error_of(ingest_in(folder, "as_nobody()"))
    for path in (folder, *folder.rglob("*")):
        path.chmod(0o755)
    assert project.outputs() == {}
    fault("disk and memory", "the outputs belong to another user", error)


def test_an_image_of_another_user(folder, fault):
    project = Project(folder)
    drop = make_drop(folder.parent / "drop", people_named(10))
    (drop / "visible/north/person 000/0.jpg").chmod(0)
    temporary = Path(tempfile.gettempdir())  # a drop's address is absolute
    for path in (folder, *folder.rglob("*"), *(one for one in folder.parents if temporary in one.parents)):
        path.chmod(0o777)
    body = (
        "as_nobody()",
        "project = Project(Path())",
        "project.add('../drop')",
        "project.ingest(max_bad_fraction=0.1)",
    )
    run = run_main(folder, *body, before=IMPORTS, stage="ingest")
    assert run.returncode == 0, run.stderr
    assert project.figures()["quarantined"] == {"no permission to read": 1}
    said = "Quarantined as `no permission to read`; the rest of the drop goes on."
    fault("drops and images", "an image that this user may not read", said)


def test_a_file_where_a_folder_is_needed(folder, fault):
    project = project_with_drop(folder)
    write(project.data / "shards", b"somebody's notes")
    error = error_of(ingest_in(folder))
    assert (project.data / "shards").read_bytes() == b"somebody's notes"
    fault("disk and memory", "a file stands where the folder of the shards belongs", error)


def test_too_many_open_files(folder, fault):
    project_with_drop(folder)
    error = error_of(ingest_in(folder, "limit('NOFILE', len(os.listdir('/proc/self/fd')) + 1)"))
    fault("disk and memory", "more files are open than the limit allows (RLIMIT_NOFILE)", error)


def test_a_ledger_that_finds_no_room_is_not_half_written(folder, fault):
    project = project_with_drop(folder)
    before = project.ledger.read_bytes()
    make_drop(folder.parent / "more", people_named(3, "guest"))
    run = run_main(
        folder, "sys.argv[1:] = ['add', '../more']", "limit('FSIZE', 100)", "cli.main()", before=CLI
    )
    assert run.returncode == 1 and "Traceback" not in run.stderr
    assert project.ledger.read_bytes() == before
    assert [path for path in project.data.iterdir() if path.suffix != ".lock"] == [project.ledger]
    fault("ledger", "no room for the ledger when a drop is added", run.stderr.strip().removeprefix("error: "))


def test_a_checkpoint_that_finds_no_room_leaves_the_one_before(folder, fault):
    body = (
        "with open_state('embedding', 'key') as state:",
        "    print(state.load() and state.load()[0])",
        "    state.save({'step': 1}, {'weight': torch.ones(10)})",
        "    limit('FSIZE', 1000)",
        "    state.save({'step': 2}, {'weight': torch.ones(1000)})",
    )
    error = error_of(run_main(folder, *body, before="import torch"))
    again = run_main(folder, *body, before="import torch")
    assert again.stdout == "{'step': 1}\n"
    fault("disk and memory", "no room for a checkpoint", error)


def test_an_output_that_finds_no_room_leaves_the_one_before(folder, fault):
    body = (
        "def write(text):",
        "    with atomic_folder('models/embedding') as part:",
        "        (part / 'config.json').write_text('{}')",
        "        (part / 'model.safetensors').write_text(text)",
        "write('old')",
        "limit('FSIZE', 1000)",
        "write('new' * 1000)",
    )
    error = error_of(run_main(folder, *body))
    assert (folder / "models/embedding/model.safetensors").read_text() == "old"
    assert [path.name for path in (folder / "models").iterdir()] == ["embedding"]
    fault("disk and memory", "no room for a stage's output", error)


def test_an_image_that_takes_more_memory_than_there_is(folder, fault):
    drop = make_drop(folder.parent / "drop", people_named(10))
    write(drop / "visible/north/person 000/9.png", huge_png(9000))
    project = Project(folder)
    project.add(drop)
    settings = "max_pixels=10**8, max_bad_fraction=0.1"
    body = ("more_memory(64)", f"Project(Path()).ingest({settings})")
    error = error_of(run_main(folder, *body, before=IMPORTS, stage="ingest"))
    assert project.ingest(max_pixels=10**8, max_bad_fraction=0.1)["quarantined"] == {"truncated": 1}
    fault("disk and memory", "memory runs out at ingest (RLIMIT_AS)", error)


def test_a_batch_that_takes_more_memory_than_there_is(folder, fault):
    body = (
        "with open_state('embedding', 'key') as state:",
        "    state.save({'step': 1}, {'weight': torch.ones(10)})",
        "    more_memory(64)",
        "    torch.ones(2**30)",
    )
    error = error_of(run_main(folder, *body, before="import torch"))
    fault("disk and memory", "memory runs out in training (RLIMIT_AS)", error)


def test_a_defect_is_not_taken_for_the_machine_s_fault(folder):
    assert "ZeroDivisionError" in run_main(folder, "1 / 0").stderr


def test_ctrl_c_says_what_the_stage_had_saved(folder, fault):
    saved = run_main(
        folder,
        "with open_state('embedding', 'key') as state:",
        "    state.save({'step': 1})",
        "    raise KeyboardInterrupt",
    )
    assert saved.returncode == 130
    fault("processes", "Ctrl-C in a stage that has saved something", saved.stderr.strip())
    nothing = run_main(folder, "raise KeyboardInterrupt", stage="ingest")
    assert nothing.returncode == 130
    fault("processes", "Ctrl-C in a stage before it has saved anything", nothing.stderr.strip())
