"""Webhook notifications: their content, the secret address, and failures that fail no run."""

from __future__ import annotations

from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest
from webhook import Webhook

from csdn.retraining import notify as module
from csdn.retraining.notify import Notification, notify

NEWS = Notification("rejected", "retrain: 12 new people, 480 images", reasons=("rank-1 fell by 3.1 points",))


@pytest.fixture
def hook(monkeypatch, request):
    monkeypatch.setattr(module, "WAIT_SECONDS", 0.01)
    hook = Webhook(*getattr(request, "param", (200,)))
    monkeypatch.setenv("CSDN_WEBHOOK", hook.address)
    yield hook
    hook.close()


def test_a_notification_is_json_with_a_text_for_people(hook):
    assert notify(NEWS) is None
    ((kind, body),) = hook.got
    assert kind == "application/json"
    assert body == {
        "event": "rejected",
        "run": "retrain: 12 new people, 480 images",
        "version": None,
        "reasons": ["rank-1 fell by 3.1 points"],
        "link": None,
        "text": "csdn: retrain: 12 new people, 480 images: rejected\nrank-1 fell by 3.1 points",
    }


def test_a_promotion_names_the_version():
    assert Notification("promoted", "run", version="v3").text == "csdn: run: promoted, v3 is champion"


def test_a_camera_s_name_is_no_slack_command_and_no_link():
    """Slack takes <!channel> for a call, and <http://a|b> for a link with a text of its own."""
    text = Notification(
        "rejected", "run", reasons=("a pair collapsed: <!channel> to <http://a|b>\u202e",)
    ).text
    assert "<" not in text and "!channel" in text and "\u202e" not in text


def test_an_address_that_is_passed_precedes_the_environment(hook, monkeypatch):
    monkeypatch.setenv("CSDN_WEBHOOK", "http://127.0.0.1:9/other")
    assert notify(NEWS, hook.address) is None and len(hook.got) == 1


@pytest.mark.parametrize("hook", [(503, 500, 200)], indirect=True)
def test_a_failed_notification_is_retried(hook):
    assert notify(NEWS) is None and len(hook.got) == 3


@pytest.mark.parametrize("hook", [(404, 404, 404)], indirect=True)
def test_an_http_error_is_reported_without_the_address(hook):
    said = notify(NEWS)
    assert said == "no notification was sent: 3 tries ended with HTTP status 404"


@pytest.mark.parametrize(
    "address", ["http://127.0.0.1:9/s3cret", "http://[s3cret", "http://s3cret host/", "s3cret", "file:///etc"]
)
def test_no_address_is_bad_enough_to_raise_or_to_be_shown(address, monkeypatch):
    monkeypatch.setattr(module, "WAIT_SECONDS", 0.01)
    said = notify(NEWS, address)
    assert said.startswith("no notification was sent: ") and "s3cret" not in said


def test_a_webhook_that_does_not_respond_costs_seconds(monkeypatch):
    monkeypatch.setattr(module, "WAIT_SECONDS", 0.01)
    monkeypatch.setattr(module, "TIMEOUT_SECONDS", 0.05)
    silent = HTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler)  # it listens, and never answers
    try:
        said = notify(NEWS, f"http://127.0.0.1:{silent.server_port}/")
    finally:
        silent.server_close()
    assert said == "no notification was sent: 3 tries ended with TimeoutError"


def test_without_an_address_nothing_is_sent(monkeypatch):
    monkeypatch.delenv("CSDN_WEBHOOK", raising=False)
    assert notify(NEWS) is None


class Block:
    """A Secret block of a Prefect server."""

    def __init__(self, address):
        self.address = address

    def load(self, name, _sync):
        assert (name, _sync) == ("csdn-webhook", True)
        if self.address is None:
            raise ValueError("Unable to find block document")
        return self

    def get(self):
        return self.address


@pytest.mark.parametrize("in_block", [True, False])
def test_a_flow_takes_the_address_from_the_block_before_the_environment(hook, monkeypatch, in_block):
    from flows import observability as flow

    if in_block:
        monkeypatch.setenv("CSDN_WEBHOOK", "http://127.0.0.1:9/other")
    monkeypatch.setattr(flow, "Secret", Block(hook.address if in_block else None))
    monkeypatch.setattr(flow, "url_for", lambda kind, obj_id: f"http://server/runs/{kind}/{obj_id}")
    flow.send(NEWS, "1234")
    ((_, body),) = hook.got
    assert body["link"] == "http://server/runs/flow-run/1234" and body["text"].endswith(body["link"])


def test_the_drift_of_new_drops_is_an_artifact_in_which_names_are_texts(monkeypatch):
    from flows import observability as flow

    shown = []
    monkeypatch.setattr(flow, "create_markdown_artifact", lambda text, key, description: shown.append(text))
    flow.show_drift(["drop 0123: drift in 1 of 2 cameras", "! visible camera <b>: new camera"])
    assert shown == ["* drop 0123: drift in 1 of 2 cameras\n* ! visible camera \\<b\\>: new camera"]
