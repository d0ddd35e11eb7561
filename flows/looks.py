"""A look for new camera data that somebody could not have because the workspace was busy."""

from __future__ import annotations

from pathlib import Path

from prefect import get_run_logger
from prefect.deployments import run_deployment
from prefect.exceptions import ObjectNotFound

RETRAIN = "csdn-retrain/retrain"


def look_now(workspace: Path) -> None:
    """Start the retraining on a workspace, without waiting for it."""
    try:
        run_deployment(RETRAIN, parameters={"workspace": str(workspace)}, timeout=0, as_subflow=False)
    except (ObjectNotFound, ValueError):
        get_run_logger().warning("there is no deployment %s: `csdn retrain` looks for camera data", RETRAIN)
