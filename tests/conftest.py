"""What every test may rely on, however the suite was started."""

import gc
import os
import shutil
import signal
from collections.abc import Callable

import faults
import pytest
from filelock import FileLock

# Longest first, or one of several processes ends up alone with a long one (`pytest --durations=0`).
LONGEST = (
    "test_retraining_story",
    "test_small_site_story",
    "test_cluster_story",
    "test_flow",
    "test_ray_training",
    "test_kill",
    "test_clusters_page",
    "test_benchmark_run",
    "test_invariance",
    "test_pipeline",
    "test_ray_nodes",
    "test_readme",
)

# OpenMP reads it when torch is loaded. Trainings of several test processes share the cores.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
# A shell starts background jobs with Ctrl-C ignored, and programs pass that on: the stages that tests
# interrupt would not hear it. `nohup` does that with SIGHUP.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)
# A training step on Ray that saves waits for Ray Train's next look at the workers.
os.environ["RAY_TRAIN_HEALTH_CHECK_INTERVAL_S"] = "0.1"


def pytest_addoption(parser):
    parser.addoption("--write-faults", action="store_true", help="write the tests' rows into docs/faults.md")


def pytest_configure(config):
    if config.getoption("--write-faults") and not hasattr(config, "workerinput"):
        config.pluginmanager.register(faults.Writer(), "faults")


def pytest_collection_modifyitems(items):
    """Then the other slow files; the fast ones fill the end."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}

    def place(item):
        name = item.path.stem
        return LONGEST.index(name) if name in LONGEST else len(LONGEST) + (item.path not in slow)

    items.sort(key=place)


@pytest.hookimpl(wrapper=True)
def pytest_collection():
    """The tests' modules are no garbage: to look for some was a third of the time of importing them."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()


def pytest_unconfigure():
    gc.unfreeze()  # or the compiler that open_clip loads tells at the end what was not cleared away


@pytest.fixture
def fault(request, tmp_path_factory) -> Callable[[str, str, object], None]:
    """fault(area, what is wrong, what it gives): the row of docs/faults.md that this test stands for.

    What it gives is the error, its text, or a sentence where the program recovers.
    """

    def note(area: str, what: str, gives: object) -> None:
        assert area in faults.AREAS
        row = faults.Row(area, what, faults.same_everywhere(str(gives), tmp_path_factory.getbasetemp()))
        if request.config.getoption("--write-faults"):
            request.node.user_properties.append(("fault", list(row)))
        elif faults.read_rows().get(what) != row:
            pytest.fail(
                f"docs/faults.md has not this row, or another text:\n{row}\n"
                f"If that is what it should say: pytest --write-faults '{request.node.nodeid}'",
                pytrace=False,
            )

    return note


@pytest.fixture(scope="session")
def open_clip():
    import open_clip  # with torchvision and torch's compiler, which most tests do not need

    return open_clip


@pytest.fixture(scope="session")
def finished_repository(tmp_path_factory, testrun_uid):
    """(folder, what it printed) of a `dvc repro` from nothing, with hostile names and secrets around it.

    Every test that only looks at a finished run shares this one; none may change it. The first of pytest's
    processes that needs it makes it, each has a copy: DVC wants a project for itself.
    """
    base = tmp_path_factory.getbasetemp()
    made = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / f"finished-{testrun_uid}"
    with FileLock(f"{made}.lock"):
        if not made.exists():
            make_finished(made)
    folder = shutil.copytree(made / "project", tmp_path_factory.mktemp("finished") / "project", symlinks=True)
    return folder, (made / "printed").read_text()


def make_finished(folder):
    from hostile import hostile_drop  # slow to import, and few tests need them
    from repository import make_repository
    from user_secrets import SECRETS, add_secret_files
    from workspace import environment, run

    drop = hostile_drop(folder.parent / f"{folder.name}-drop" / "\x1b[31min")
    project = make_repository(folder.with_suffix(".partial") / "project", address=str(drop))
    add_secret_files(project)
    done = run(project, "dvc", "repro", env=environment() | SECRETS)
    (folder.with_suffix(".partial") / "printed").write_text(done.stdout + done.stderr)
    folder.with_suffix(".partial").rename(folder)


@pytest.fixture(scope="module")
def s3_server(tmp_path_factory):
    """An S3 server (s3_server.S3Server) that this process's environment names, its keys too."""
    from s3_server import S3Server, s3_environment  # slow to import, and few tests need them

    from csdn.ingest import pack

    pack.store_at.cache_clear()  # it may speak to another module's server
    server = S3Server(tmp_path_factory.mktemp("s3") / "server.log")
    try:
        with s3_environment(server):
            yield server
    finally:
        server.stop()
