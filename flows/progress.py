"""A stage's lines as a task's log, and its progress as a bar on the run's page."""

from __future__ import annotations

import re
from logging import Logger, LoggerAdapter

from prefect.artifacts import create_progress_artifact, update_progress_artifact

# As in "embedding: 120/1000 steps, 845 images/s, 50 s left  loss 7.042" (csdn.runtime.console).
_PROGRESS = re.compile(r"(?P<phase>\S.*?): (?P<done>\d+)/(?P<total>\d+) (?P<rest>.*)")


class LogWithProgress:
    """Called with each line. The bar comes with a stage's first progress: quick stages need none."""

    def __init__(self, stage: str, logger: Logger | LoggerAdapter) -> None:
        self.stage, self.logger = stage, logger
        self.bar = None

    def __call__(self, line: str) -> None:
        self.logger.info(line)
        found = _PROGRESS.fullmatch(line)
        if found and int(found["total"]):
            self._show(100 * int(found["done"]) / int(found["total"]), line)

    def end(self) -> None:
        """Fill the bar: the stage has succeeded."""
        if self.bar is not None:
            self._show(100.0, f"{self.stage}: done")

    def _show(self, percent: float, line: str) -> None:
        try:
            if self.bar is None:
                self.bar = create_progress_artifact(percent, key=f"progress-{self.stage}", description=line)
            else:
                update_progress_artifact(self.bar, percent, description=line)
        except Exception as error:  # no stage fails because its bar could not be drawn
            self.logger.warning("progress could not be shown: %s", error)
