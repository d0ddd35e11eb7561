"""What every test may rely on, however the suite was started."""

import signal

import pytest

# A shell starts background jobs with Ctrl-C ignored, and programs pass that on: the stages that tests
# interrupt would not hear it.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def finished_repository(tmp_path_factory):
    """(folder, what it printed) of a `dvc repro` that began with nothing and had secrets in its environment.

    Every test that only looks at a finished run shares this one; none may change it.
    """
    from repository import make_repository  # slow to import, and few tests need it
    from user_secrets import SECRETS
    from workspace import environment, run

    folder = make_repository(tmp_path_factory.mktemp("finished") / "project")
    done = run(folder, "dvc", "repro", env=environment() | SECRETS)
    return folder, done.stdout + done.stderr
