"""`csdn doctor`: checks of the installation, the machine and the project, each with advice."""

from __future__ import annotations

import os
import re
import shutil
import sys
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path
from typing import Literal, NamedTuple

from packaging.requirements import Requirement

from csdn.cli.versions import package_versions
from csdn.ingest.ledger import read_ledger
from csdn.params import Params, load_params
from csdn.retraining import git
from csdn.runtime.errors import UserError
from csdn.runtime.process import available_cores

OF_USE = ("", "search")  # extras that searching with a model needs
EXTRAS = (*OF_USE, "s3", "pipeline")
CREDENTIALS = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_PROFILE")
OF_OTHER_STORES = (
    "GOOGLE_APPLICATION_CREDENTIALS",
    "AZURE_STORAGE_ACCOUNT_NAME",
    "AZURE_STORAGE_ACCOUNT_KEY",
)
STORE_SETTINGS = ("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "AWS_DEFAULT_REGION")
OLDEST_GIT = (2, 33)  # rev-list --no-commit-header
ENOUGH_DISK = 5 * 2**30  # bytes; a demo run with its cache needs a tenth of that, real cameras far more


class Check(NamedTuple):
    """The result of a check; `problem` means that the pipeline cannot run with the current settings."""

    state: Literal["ok", "note", "problem"]
    name: str
    found: str
    advice: str = ""


def show() -> bool:
    """Print the report; returns whether there is no problem."""
    checks = report()
    for check in checks:
        print(f"{check.state:8} {check.name:14} {check.found}")
        if check.advice:
            print(f"{'':23} -> {check.advice}")
    return all(check.state != "problem" for check in checks)


def report(root: Path = Path()) -> list[Check]:
    """All checks of this machine and of the project in `root`. Changes and downloads nothing.

    Outside a clone of the project, those that the use of a model needs.
    """
    if not (root / "dvc.yaml").exists():
        found = "this folder is no clone: only what searching with a model needs is checked"
        no_clone = Check("note", "project", found, "to train, run the command in the root folder of a clone")
        return [no_clone, _python(), _packages(OF_USE, "'csdn[search]'"), _disk(root), _credentials()]
    params_check, params = _params(root)
    checks = [_python(), _packages(), _interpreter_on_path(), _git(root), _dvc(root), params_check]
    if params is not None:
        checks += [_device(params), _threads(params), _clip_weights(root, params)]
        checks += [_store(address) for address in (params.ingest.store, params.report.store) if address]
    return [*checks, _ledger(root), _disk(root), _credentials()]


def _python() -> Check:
    return Check("ok", "python", f"{sys.version.split()[0]} ({sys.executable})")


def _packages(extras: tuple[str, ...] = EXTRAS, install: str = "-e '.[all]'") -> Check:
    if unmet := list(_unmet_requirements(extras)):
        advice = f"pip install -c constraints.txt {install}"
        return Check("problem", "packages", "; ".join(unmet), advice)
    return Check("ok", "packages", f"all requirements are installed; {'; '.join(package_versions()[1:])}")


def _unmet_requirements(extras: tuple[str, ...]) -> Iterator[str]:
    """Requirements in csdn's metadata, with these extras, that this environment does not meet."""
    for text in metadata.requires("csdn") or []:
        required = Requirement(text)
        if required.marker and not any(required.marker.evaluate({"extra": extra}) for extra in extras):
            continue
        try:
            version = metadata.version(required.name)
        except metadata.PackageNotFoundError:
            yield f"{required.name} is missing"
            continue
        if not required.specifier.contains(version, prereleases=True):
            yield f"{required.name} {version} is not {required.specifier}"


def _interpreter_on_path() -> Check:
    """The commands in dvc.yaml start `python`: it must be this interpreter."""
    found = shutil.which("python")
    if found and Path(found).parent == Path(sys.executable).parent:
        return Check("ok", "path", "`python` is the interpreter of this environment")
    advice = "source .venv/bin/activate, before `dvc repro`"
    if found is None:
        return Check("note", "path", "`python` is not found", advice)
    return Check("note", "path", f"`python` is {found}, of another environment", advice)


def _git(root: Path) -> Check:
    try:
        version = git.git(root, "--version").removeprefix("git version ")
        if tuple(map(int, re.findall(r"\d+", version)[:2])) < OLDEST_GIT:  # as in "2.39.5 (Apple Git-154)"
            return Check("problem", "git", version, "install {}.{} or newer".format(*OLDEST_GIT))
        return Check("ok", "git", f"{version}, {git.top_level(root)}")
    except UserError as error:
        return Check(
            "problem", "git", _one_line(error), "install git, clone the project, or follow Git's advice"
        )


def _dvc(root: Path) -> Check:
    if not (root / ".dvc" / "config").is_file():
        return Check("problem", "dvc", "no .dvc/config here", "run the command in the project's root folder")
    if not (root / "dvc.lock").is_file():
        return Check("ok", "dvc", "no stage has run yet")
    return Check("ok", "dvc", "stages have run; `dvc status` shows which are out of date")


def _params(root: Path) -> tuple[Check, Params | None]:
    try:
        params = load_params(root / "params.yaml")
    except UserError as error:
        return Check("problem", "params.yaml", _one_line(error)), None
    return Check("ok", "params.yaml", "valid"), params


def _one_line(error: UserError) -> str:
    return "; ".join(line.strip() for line in str(error).splitlines() if line.strip())


def _device(params: Params) -> Check:
    import torch

    setting, gpu = params.scaling.device, torch.cuda.is_available()
    if setting == "cuda" and not gpu:
        return Check("problem", "device", "scaling.device is cuda, but torch finds no GPU", "set auto or cpu")
    device = torch.cuda.get_device_name() if gpu and setting != "cpu" else "CPU"
    return Check("ok", "device", f"{device} (scaling.device: {setting})")


def _threads(params: Params) -> Check:
    cores = available_cores()
    return Check("ok", "threads", f"{params.scaling.threads or cores} threads of torch, {cores} cores")


def _clip_weights(root: Path, params: Params) -> Check:
    model = params.model
    if (root / model.weights).is_file():
        return Check("ok", "CLIP weights", f"{model.clip}: {model.weights}")
    return Check("problem", "CLIP weights", f"{model.clip}: {model.weights} is missing", "csdn fetch-clip")


def _ledger(root: Path) -> Check:
    try:
        drops = read_ledger(root / "data" / "drops.json")
    except UserError as error:
        return Check("problem", "ledger", _one_line(error))
    if not drops:
        return Check("problem", "ledger", "no drops", "csdn add builtin:demo --layout builtin")
    statuses = [str(drop.status) for drop in drops]
    counts = ", ".join(f"{statuses.count(status)} {status}" for status in dict.fromkeys(statuses))
    return Check("ok", "ledger", f"drops: {counts}")


def _store(address: str) -> Check:
    from csdn.data.storage import Store

    try:
        Store(address).check()
    except UserError as error:
        return Check("problem", "object store", _one_line(error))
    return Check("ok", "object store", f"{address} responds")


def _disk(root: Path) -> Check:
    free = shutil.disk_usage(root).free
    found = f"{free / 2**30:.0f} GiB free"
    if free < ENOUGH_DISK:
        return Check("note", "disk", found, "the shards and DVC's cache each need the size of the images")
    return Check("ok", "disk", found)


def _credentials(environment: Callable[[str], str | None] = os.environ.get) -> Check:
    """Only the names of the variables are shown, never their values."""
    present = [name for name in (*CREDENTIALS, *OF_OTHER_STORES, *STORE_SETTINGS) if environment(name)]
    file = Path(environment("AWS_SHARED_CREDENTIALS_FILE") or "~/.aws/credentials").expanduser()
    if file.is_file():
        present.append(str(file))
    return Check("ok", "credentials", ", ".join(present) or "none (only object stores need them)")
