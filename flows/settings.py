"""What a run is told, checked before anything starts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from csdn.params import load_params
from csdn.retraining.dvc import remotes
from csdn.retraining.overrides import overridden
from csdn.runtime.errors import UserError
from csdn.runtime.process import reach_loopback_directly
from csdn.runtime.sanitize import has_credentials

PROJECT = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class Settings:
    """environment: set for the stages, besides what the worker has. remote: name of a DVC remote."""

    environment: Mapping[str, str]
    remote: str | None


def checked(
    folder: Path, overrides: Mapping[str, Any], ray_address: str | None, remote: str | None
) -> Settings:
    """The parameters of a run as settings; raises UserError naming what is wrong and what is allowed."""
    reach_loopback_directly()  # the webhook and the object store, too, may be there
    load_params(folder / "params.yaml")
    scaling = overridden(overrides, (folder / "params.yaml").read_bytes()).scaling
    if remote is not None and remote not in (names := remotes(folder)):
        raise UserError(
            f"remote = {remote!r}: no DVC remote of {folder} is called that; there are: "
            f"{', '.join(names) or 'none'} (`dvc remote add NAME s3://bucket/prefix`)"
        )
    if not ray_address:
        return Settings({}, remote)
    if has_credentials(ray_address):
        raise UserError("ray_address: a key or password is in it, which Prefect would show")
    if not scaling.workers:
        raise UserError(
            f"ray_address = {ray_address}: nothing would use it, as scaling.workers is 0; "
            'add overrides, such as {"scaling.workers": 4}'
        )
    if scaling.address:
        raise UserError(
            f"ray_address = {ray_address}: scaling.address in params.yaml names {scaling.address}, which "
            "counts before it; leave one of them empty"
        )
    return Settings({"RAY_ADDRESS": ray_address}, remote)
