"""Webhooks: signed, tried again, and kept when they cannot be delivered."""

from __future__ import annotations

import hashlib
import hmac
import json
import threading
import time
from dataclasses import replace

from osd.config.monitor import Webhook
from osd.monitor.webhook import WebhookSender
from osd.records.events import Event
from tests.kit.waiting import wait_for

FIRING = Event(
    at_s=1.0, kind="alert", message="drift (code): fell",
    data={"alert": "drift", "subject": "code", "severity": "warning", "state": "firing", "since_s": 0.0},
)  # fmt: skip


class Receiver:
    """Answers posts with these statuses in turn, the last one for ever; 0: nobody answers."""

    def __init__(self, *statuses: int) -> None:
        self.statuses = list(statuses)
        self.posts: list[tuple[str, bytes, dict[str, str]]] = []

    def __call__(self, url: str, body: bytes, headers: dict[str, str]) -> int:
        self.posts.append((url, body, headers))
        status = self.statuses.pop(0) if len(self.statuses) > 1 else self.statuses[0]
        if not status:
            raise OSError("refused")
        return status


def test_each_receiver_gets_its_format_and_a_signature_that_verifies() -> None:
    receiver, dead = Receiver(204), list[Event]()
    hooks = [Webhook(url="http://a.example/x", secret_env="KEY"), Webhook(url="http://b.example", format="slack")]
    sender = WebhookSender(hooks, {"KEY": "s3cret"}, receiver, dead.append, clock_s=lambda: 99.0)
    sender.send(FIRING)
    wait_for(lambda: len(receiver.posts) == 2)
    sender.close()
    (_, body, headers), (_, slack, unsigned) = receiver.posts
    digest = hmac.new(b"s3cret", b"99." + body, hashlib.sha256).hexdigest()
    assert headers["X-OSD-Signature"] == f"t=99,v1={digest}"
    assert json.loads(body)["subject"] == "code" and json.loads(body)["state"] == "firing"
    assert "drift (code): fell" in json.loads(slack)["text"] and "X-OSD-Signature" not in unsigned
    assert dead == []


def test_a_receiver_that_fails_is_tried_again() -> None:
    receiver, dead = Receiver(0, 500, 429, 200), list[Event]()
    sender = WebhookSender([Webhook(url="http://a.example")], {}, receiver, dead.append, first_retry_s=0.001)
    sender.send(FIRING)
    wait_for(lambda: len(receiver.posts) == 4)
    sender.close()
    assert dead == [] and len(receiver.posts) == 4


def test_the_pause_before_each_further_attempt_is_twice_as_long() -> None:
    attempts_s: list[float] = []

    def refuse(*_: object) -> int:
        attempts_s.append(time.monotonic())
        return 500

    sender = WebhookSender([Webhook(url="http://a.example")], {}, refuse, lambda event: None, first_retry_s=0.02)
    sender.send(FIRING)
    wait_for(lambda: len(attempts_s) == 5)
    sender.close()
    pauses_s = [after - before for before, after in zip(attempts_s, attempts_s[1:], strict=False)]
    assert all(pause_s >= 0.02 * 2**number for number, pause_s in enumerate(pauses_s))


def test_of_too_many_alerts_that_wait_the_oldest_is_given_up() -> None:
    """One is being delivered, and 200 wait."""
    begun, may_end, dead = threading.Event(), threading.Event(), list[Event]()

    def slow(*_: object) -> int:
        begun.set()
        may_end.wait(60)
        return 200

    sender = WebhookSender([Webhook(url="http://a.example")], {}, slow, dead.append)
    sender.send(FIRING)
    assert begun.wait(60)
    for number in range(202):
        sender.send(replace(FIRING, message=f"alert {number}"))
    assert [one.data["undelivered"] for one in dead] == ["alert 0", "alert 1"]
    assert all(one.message.endswith("to http://a.example: too many alerts wait") for one in dead)
    may_end.set()
    sender.close()


def test_what_cannot_be_delivered_is_kept() -> None:
    receiver, dead = Receiver(500), list[Event]()
    sender = WebhookSender(
        [Webhook(url="http://a.example/hook?key=secret")], {}, receiver, dead.append, first_retry_s=1e-4
    )
    sender.send(FIRING)
    (letter,) = wait_for(lambda: dead)
    sender.close()
    assert len(receiver.posts) == 8
    assert letter.kind == "dead_letter" and letter.data["alert"] == "drift" and "HTTP 500" in letter.message
    assert letter.data["undelivered"] == FIRING.message
    assert "secret" not in letter.message and "secret" not in str(letter.data)


def test_closing_keeps_what_waits() -> None:
    dead = list[Event]()
    sender = WebhookSender([Webhook(url="http://a.example")], {}, Receiver(0), dead.append, first_retry_s=3600.0)
    sender.send(FIRING)
    sender.close()
    assert [one.kind for one in dead] == ["dead_letter"]
