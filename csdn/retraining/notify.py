"""Telling somebody by webhook: a run was promoted, waits for a person, was refused, or failed.

The address is a secret: whoever has it can write to the channel. It comes from the environment
(CSDN_WEBHOOK) or from the caller, and is in no message, log or error.
"""

from __future__ import annotations

import http.client
import json
import os
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Literal

from csdn.safe import unmarked

VARIABLE = "CSDN_WEBHOOK"
TRIES = 3
WAIT_SECONDS = 1.0  # before the second try, and twice as long before the third
TIMEOUT_SECONDS = 5.0  # of one try


@dataclass(frozen=True)
class News:
    """What happened. It is sent as JSON with these keys and `text`, which Slack and its like show."""

    event: Literal["promoted", "ready", "refused", "failed"]
    run: str  # its name, for people
    version: str | None = None  # that is champion from now on
    reasons: Sequence[str] = ()
    link: str | None = None  # where to read more

    @property
    def text(self) -> str:
        head = f"csdn: {self.run}: {self.event}" + (f", {self.version} is champion" if self.version else "")
        # A camera named "<!channel>" must not call everybody: Slack takes angle brackets for commands.
        return unmarked("\n".join(filter(None, (head, *self.reasons, self.link))), keep="\n")


def notify(news: News, address: str | None = None) -> str | None:
    """Send `news` to `address`, or to CSDN_WEBHOOK; without either, to nobody.

    Returns None, or why it could not be sent: no run fails for that.
    """
    address = address or os.environ.get(VARIABLE)
    if not address:
        return None
    if not address.startswith(("https://", "http://")):
        return f"nobody was told: {VARIABLE} is no http:// or https:// address"
    body = json.dumps(asdict(news) | {"text": news.text}).encode()
    wait, problem = WAIT_SECONDS, None
    for left in reversed(range(TRIES)):
        problem = _send(address, body)
        if problem is None:
            return None
        if left:
            time.sleep(wait)
            wait *= 2
    return f"nobody was told: the webhook gave {problem}, {TRIES} times"


def _send(address: str, body: bytes) -> str | None:
    """What went wrong; the text of most errors would name the address."""
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
