"""What is shown of a run outside its log: webhook notifications, and Markdown pages with the CMC curves.

A notification says that a run was promoted, is ready, was rejected or left undecided, or has failed. The
webhook's address is a secret, as whoever has it can write to the channel: it comes from the environment
(CSDN_WEBHOOK) or from the caller, and is in no message, log or error.
"""

from __future__ import annotations

import base64
import http.client
import json
import os
import time
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from csdn.ingest.counts import summary_lines
from csdn.retraining.gate import BEST, METRICS, PROMOTE, REJECT, UNDECIDED
from csdn.runtime.sanitize import as_markdown, escape_control_chars, escape_tags

if TYPE_CHECKING:
    from csdn.training.champion import Champion


VARIABLE = "CSDN_WEBHOOK"
TRIES = 3
WAIT_SECONDS = 1.0  # before the second try, and twice as long before the third
TIMEOUT_SECONDS = 5.0  # of each try


@dataclass(frozen=True)
class Notification:
    """What happened to a run; sent as JSON with these keys and `text`, which Slack and Mattermost show."""

    event: Literal["promoted", "ready", "rejected", "undecided", "failed"]
    run: str  # the run's title
    version: str | None = None  # the new champion
    reasons: Sequence[str] = ()
    link: str | None = None  # the run's page

    @property
    def text(self) -> str:
        head = f"csdn: {self.run}: {self.event}" + (f", {self.version} is champion" if self.version else "")
        # In Slack, angle brackets mark commands: a camera named "<!channel>" would notify all members.
        return escape_tags("\n".join(filter(None, (head, *self.reasons, self.link))), keep="\n")


def notify(notification: Notification, address: str | None = None) -> str | None:
    """Send a notification to `address`, or else to CSDN_WEBHOOK; without either, nothing is sent.

    Returns None, or why the notification could not be sent: no run fails because of that.
    """
    address = address or os.environ.get(VARIABLE)
    if not address:
        return None
    if not address.startswith(("https://", "http://")):
        return f"no notification was sent: {VARIABLE} is no http:// or https:// address"
    body = json.dumps(asdict(notification) | {"text": notification.text}).encode()
    problem = None
    for attempt in range(TRIES):
        if attempt:
            time.sleep(WAIT_SECONDS * 2 ** (attempt - 1))
        problem = _send(address, body)
        if problem is None:
            return None
    return f"no notification was sent: {TRIES} tries ended with {problem}"


def _send(address: str, body: bytes) -> str | None:
    """The kind of error, or None; the messages of most errors would contain the address."""
    try:
        request = urllib.request.Request(address, body, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=TIMEOUT_SECONDS):
            return None
    except urllib.error.HTTPError as error:
        error.close()
        return f"HTTP status {error.code}"
    except (OSError, ValueError, http.client.HTTPException) as error:
        cause = getattr(error, "reason", error)
        return type(cause if isinstance(cause, Exception) else error).__name__


# Pages in Markdown, and the report's CMC curves as images in them.

DIRECTIONS = {"ir_to_vis": "infrared → visible", "vis_to_ir": "visible → infrared"}


def headline_page(figures: Mapping[str, Any], champion: Champion | None) -> str:
    """metrics/headline.json in percent, with the differences to the champion's figures."""
    old = champion.figures if champion else {}
    rows = [
        f"| {name} | {' | '.join(_compared(figures[key], old.get(key), metric) for metric in METRICS)} |"
        for key, name in DIRECTIONS.items()
        if key in figures
    ]
    head = [f"| | {' | '.join(METRICS.values())} |", "|---|" + "---|" * len(METRICS)]
    return "\n".join(
        [*head, *rows, "", f"Percent, {figures['test_people']} test people. {_beside(champion)}"]
    )


def _compared(new: Mapping[str, float | None], old: Any, metric: str) -> str:
    value, before = new[metric], (old or {}).get(metric)
    if value is None:
        return "-"
    return f"{value:.2f}" + ("" if before is None else f" ({value - before:+.2f})")


def _beside(champion: Champion | None) -> str:
    if champion is None:
        return "There is no champion to compare with."
    return (
        f"In brackets: the difference to what champion {champion.version} had on {champion.date}, on the "
        "test people of that day. The gate compares both models on the same people."
    )


_HEADS = {
    PROMOTE: "Promote",
    REJECT: "Reject the candidate",
    UNDECIDED: "Undecided: the champion stays, and the drops stay accepted",
}


def gate_page(gate: Mapping[str, Any]) -> str:
    """metrics/gate.json: the decision, its reasons, and the comparisons over all cameras."""
    lines = [
        f"### {_HEADS[gate['decision']]}",
        "",
        *(f"* {as_markdown(reason)}" for reason in gate["reasons"]),
        "",
    ]
    overall = [one for one in gate["comparisons"] if not (one["query_camera"] or one["gallery_camera"])]
    if overall:
        most = max(one["people"] for one in overall)
        lines += [
            "| data | direction | metric | "
            f"champion {gate['champion']} | candidate | difference | interval |",
            "|---|---|---|---|---|---|---|",
            *(_comparison(one, gate.get("best")) for one in overall),
            "",
            f"Percent; at most {most} people, whom neither model saw in training.",
        ]
    return "\n".join(lines)


def _comparison(one: Mapping[str, Any], best: str | None) -> str:
    """A row; best: the version in the champion's place of the comparisons on BEST."""
    data = f"today, {best} as the champion" if one["data"] == BEST else one["data"]
    cells = [data, one["direction"].replace("_", " "), METRICS.get(one["metric"], one["metric"])]
    cells += [f"{one['champion']:.2f}", f"{one['candidate']:.2f}", f"{one['difference']:+.2f}"]
    cells.append(f"{one['low']:+.2f} to {one['high']:+.2f}")
    return f"| {' | '.join(cells)} |"


def data_page(figures: Mapping[str, Any]) -> str:
    """metrics/ingest.json: the lines that ingest printed."""
    lines = (escape_control_chars(line).replace("`", "'") for line in summary_lines(dict(figures)))
    return "\n".join(["```", *lines, "```"])


def cmc_pictures(figures: Path) -> str:
    """The report's CMC curves (report/figures) as images in data: URIs, which need no file."""
    pictures = (base64.b64encode(path.read_bytes()).decode() for path in sorted(figures.glob("cmc_*.png")))
    return " ".join(f"![CMC](data:image/png;base64,{picture})" for picture in pictures)
