"""What an operator can do on the admin page: each lever says what happens, leaves an audit entry, has a way back."""

from __future__ import annotations

import time
from dataclasses import replace
from functools import partial

import pytest
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import Select

from osd.monitor.alerts import Alert
from osd.records.events import Event
from tests.browser.driving import choose, click, content, find, open_dashboard, open_history, text_of, wait
from tests.kit.fakes import FakeEngineClient

pytestmark = pytest.mark.browser


def test_alerts_are_acknowledged_and_silenced(browser: webdriver.Chrome, url: str, engine: FakeEngineClient) -> None:
    engine.held_alerts = [
        Alert(name="drift", subject="code", severity="warning", state="firing", since_s=time.time(), why="it fell")
    ]
    open_dashboard(browser, url)
    wait(browser, lambda: text_of(browser, "alert-count") == "▲ 1 firing")
    click(browser, "#alerts button[data-act=acknowledge]")
    assert "take care of it" in text_of(browser, "confirm-text")
    click(browser, "#confirm-yes")
    wait(browser, lambda: "acknowledged by session" in text_of(browser, "alerts"))
    click(browser, "#alerts button[data-act=silence]")
    click(browser, "#confirm-yes")
    wait(browser, lambda: "drift is silent for" in text_of(browser, "silences"))
    assert engine.calls == [("acknowledge", "drift", "code"), ("silence", "drift", 3600)]
    assert [one.kind for one in engine.event_log[-2:]] == ["audit", "audit"]
    engine.held_alerts = []  # a silence can be ended also while nothing fires
    wait(browser, lambda: text_of(browser, "alerts") == "No rule's condition holds.")
    click(browser, "#silences button")
    assert "told again" in text_of(browser, "confirm-text")
    click(browser, "#confirm-yes")
    wait(browser, lambda: engine.calls[-1] == ("silence", "drift", 0))
    wait(browser, lambda: text_of(browser, "silences") == "")


@pytest.mark.parametrize(
    ("button", "said", "call", "audited"),
    [
        ("#train-now", "however busy", ("train_now",), "train now"),
        ("#publish", "whatever the gate says", ("publish",), "publish the candidate"),
        ("#pause", "learns nothing", ("pause",), "pause training"),
        ("#engines button", "takes no new ones", ("drain", "engine", True), "drain the engine engine"),
        (
            "#domains button[data-act=freeze][data-domain=chat]",
            "learns nothing from",
            ("freeze", "chat", True),
            "freeze the domain chat",
        ),
        (
            "#domains button[data-act=policy][data-domain=chat]",
            "until it is changed",
            ("policy", "chat", None),
            "speculation length of the domain chat: chosen by goodput",
        ),
    ],
)
def test_every_lever_says_what_will_happen_and_leaves_an_audit_entry(
    browser: webdriver.Chrome,
    url: str,
    engine: FakeEngineClient,
    button: str,
    said: str,
    call: tuple[object, ...],
    audited: str,
) -> None:
    open_history(browser, url)
    wait(browser, lambda: browser.find_elements(By.CSS_SELECTOR, button))
    click(browser, button)
    assert said in text_of(browser, "confirm-text")
    click(browser, "#confirm-no")
    assert engine.calls == []
    click(browser, button)
    click(browser, "#confirm-yes")
    wait(browser, lambda: engine.calls == [call])
    wait(browser, lambda: content(browser, "#announcement"))
    wait(browser, lambda: f"from 127.0.0.1: {audited}" in text_of(browser, "events"))
    assert engine.event_log[-1].data["who"].startswith("session "), "who it was, as far as a page can tell"


def test_a_lever_can_be_pulled_again_at_once(browser: webdriver.Chrome, url: str, engine: FakeEngineClient) -> None:
    """The event of the dialog that was just closed does not answer the next one."""
    open_history(browser, url)
    click(browser, "#train-now")
    browser.execute_script("document.getElementById('confirm-no').click(); document.getElementById('publish').click()")
    wait(browser, lambda: "whatever the gate says" in text_of(browser, "confirm-text"))
    click(browser, "#confirm-yes")
    wait(browser, lambda: engine.calls == [("publish",)])


def test_every_lever_has_a_way_back(browser: webdriver.Chrome, url: str, engine: FakeEngineClient) -> None:
    assert engine.service is not None and engine.service.trainer is not None
    engine.service = replace(engine.service, trainer=replace(engine.service.trainer, state="paused"))
    engine.asked_for = engine.asked_for.with_frozen("chat", True).with_draining("engine", True).with_length("code", 2)
    open_history(browser, url)
    wait(browser, lambda: "▽ draining" in text_of(browser, "engines") and "2 tokens" in text_of(browser, "domains"))
    assert not find(browser, "#pause").is_displayed()
    back = {
        "#resume": ("resume",),
        "#engines button": ("drain", "engine", False),
        "#domains button[data-act=thaw]": ("freeze", "chat", False),
        "#domains button[data-act=policy][data-domain=code]": ("policy", "code", None),
    }
    for number, button in enumerate(back, start=1):
        click(browser, button)
        if "policy" in button:
            assert Select(find(browser, "#length")).first_selected_option.text == "2", "what holds is what is chosen"
            choose(browser, "#length", "chosen by goodput")
        click(browser, "#confirm-yes")
        wait(browser, partial(lambda number: len(engine.calls) == number, number))
    assert engine.calls == list(back.values())
    wait(browser, lambda: "● up" in text_of(browser, "engines") and "❄" not in text_of(browser, "domains"))
    wait(browser, lambda: "2 tokens" not in text_of(browser, "domains"))


def test_two_operators_see_each_others_doing(browser: webdriver.Chrome, url: str, engine: FakeEngineClient) -> None:
    """The other one freezes a domain with the API while the page is open."""
    open_history(browser, url)
    engine.asked_for = engine.asked_for.with_frozen("code", True)
    engine.event_log.append(Event(at_s=time.time(), kind="audit", message="bob (token): freeze the domain code"))
    wait(browser, lambda: "❄ frozen" in text_of(browser, "domains"))
    wait(browser, lambda: "bob (token)" in text_of(browser, "events"))
