"""Rolling back by hand on the admin page: what the dialog says is what is done, and keys and focus are right."""

from __future__ import annotations

from dataclasses import replace

import pytest
from selenium import webdriver
from selenium.webdriver.common.keys import Keys

from tests.browser.driving import click, content, find, focused_id, open_dashboard, text_of, wait
from tests.kit.fake_status import fake_manifest
from tests.kit.fakes import FakeEngineClient

pytestmark = pytest.mark.browser


def serve_version(engine: FakeEngineClient, number: int) -> None:
    assert engine.service is not None and engine.service.engine is not None
    engine.service = replace(engine.service, engine=replace(engine.service.engine, drafter_version=number))


def press(browser: webdriver.Chrome, key: str) -> None:
    browser.switch_to.active_element.send_keys(key)


def is_open(browser: webdriver.Chrome) -> bool:
    return find(browser, "#confirm").is_displayed()


def test_enter_confirms_what_the_dialog_says(browser: webdriver.Chrome, url: str, engine: FakeEngineClient) -> None:
    open_dashboard(browser, url)
    assert text_of(browser, "roll-back") == "Roll back to v1"  # 2 was rolled back itself
    click(browser, "#roll-back")
    assert text_of(browser, "confirm-title") == "Serve version 1?"
    assert "changes to version 1 " in text_of(browser, "confirm-text")
    assert text_of(browser, "confirm-yes") == "Serve version 1"
    assert focused_id(browser) == "reason"
    press(browser, "was better" + Keys.ENTER)
    wait(browser, lambda: engine.calls == [("roll_back", 1, "was better")])
    assert not is_open(browser)
    wait(browser, lambda: content(browser, "#announcement") == "Version 1 is going to serve.")
    assert focused_id(browser) == "roll-back"


def test_a_reason_may_be_left_out(browser: webdriver.Chrome, url: str, engine: FakeEngineClient) -> None:
    open_dashboard(browser, url)
    click(browser, "#versions tr:last-child button")
    press(browser, Keys.ENTER)
    wait(browser, lambda: engine.calls == [("roll_back", 1, "no reason given")])


@pytest.mark.parametrize("way", ["escape", "cancel", "cancel by enter"])
def test_the_dialog_can_be_left(browser: webdriver.Chrome, url: str, engine: FakeEngineClient, way: str) -> None:
    open_dashboard(browser, url)
    click(browser, "#roll-back")
    if way == "escape":
        press(browser, "half a rea" + Keys.ESCAPE)
    elif way == "cancel":
        click(browser, "#confirm-no")
    else:
        press(browser, Keys.TAB)
        assert focused_id(browser) == "confirm-no"
        press(browser, Keys.ENTER)
    wait(browser, lambda: not is_open(browser))
    assert focused_id(browser) == "roll-back"
    assert engine.calls == []


def test_enter_held_down_does_not_confirm(browser: webdriver.Chrome, url: str, engine: FakeEngineClient) -> None:
    open_dashboard(browser, url)
    click(browser, "#roll-back")
    key = {"key": "Enter", "code": "Enter", "windowsVirtualKeyCode": 13, "text": "\r"}
    browser.execute_cdp_cmd("Input.dispatchKeyEvent", {"type": "keyDown", "autoRepeat": True, **key})
    assert is_open(browser)
    browser.execute_cdp_cmd("Input.dispatchKeyEvent", {"type": "keyDown", **key})
    wait(browser, lambda: engine.calls)


def test_a_publish_meanwhile_changes_nothing(browser: webdriver.Chrome, url: str, engine: FakeEngineClient) -> None:
    open_dashboard(browser, url)
    click(browser, "#roll-back")
    engine.manifests.append(fake_manifest(4))
    serve_version(engine, 4)
    # Behind the dialog the page goes on: what its button offers is another version now.
    wait(browser, lambda: content(browser, "#roll-back") == "Roll back to v3")
    assert text_of(browser, "confirm-title") == "Serve version 1?"
    press(browser, "was better" + Keys.ENTER)
    wait(browser, lambda: engine.calls == [("roll_back", 1, "was better")])


def test_where_there_is_nothing_to_go_back_to_it_is_off_and_says_so(
    browser: webdriver.Chrome, url: str, engine: FakeEngineClient
) -> None:
    serve_version(engine, 1)
    open_dashboard(browser, url)
    button = find(browser, "#roll-back")
    assert not button.is_enabled()
    assert description(browser, "#roll-back") == "Nothing to go back to: no older version is fit to serve."
    serve_version(engine, 3)
    wait(browser, button.is_enabled)
    assert description(browser, "#roll-back") == ""


def test_focus_goes_to_the_heading_where_the_button_went_off(
    browser: webdriver.Chrome, url: str, engine: FakeEngineClient
) -> None:
    open_dashboard(browser, url)
    click(browser, "#roll-back")
    serve_version(engine, 1)
    press(browser, Keys.ENTER)
    wait(browser, lambda: not find(browser, "#roll-back").is_enabled())
    assert focused_id(browser) == "versions-title"


def test_focus_returns_near_a_button_that_was_replaced_meanwhile(
    browser: webdriver.Chrome, url: str, engine: FakeEngineClient
) -> None:
    open_dashboard(browser, url)
    click(browser, "#versions tr:last-child button")
    engine.manifests.append(fake_manifest(4))  # every row is made anew
    wait(browser, lambda: "v4" in content(browser, "#versions"))
    press(browser, Keys.ESCAPE)
    wait(browser, lambda: not is_open(browser))
    assert browser.switch_to.active_element.text == "Serve v1"
    press(browser, Keys.ENTER)
    engine.manifests[0] = fake_manifest(1, rolled_back="worse")  # and now the button is gone
    wait(browser, lambda: "Serve v1" not in content(browser, "#versions"))
    press(browser, Keys.ESCAPE)
    wait(browser, lambda: not is_open(browser))
    assert focused_id(browser) == "versions-title"


def test_a_refusal_says_why(browser: webdriver.Chrome, url: str, engine: FakeEngineClient) -> None:
    open_dashboard(browser, url)
    click(browser, "#roll-back")
    engine.manifests.pop(0)
    press(browser, Keys.ENTER)
    wait(browser, lambda: text_of(browser, "alert") == "That did not work: there is no drafter version 1")


def description(browser: webdriver.Chrome, selector: str) -> str:
    """What a screen reader says of an element beyond its name."""
    root = browser.execute_cdp_cmd("DOM.getDocument", {})["root"]["nodeId"]
    node = browser.execute_cdp_cmd("DOM.querySelector", {"nodeId": root, "selector": selector})["nodeId"]
    found = browser.execute_cdp_cmd("Accessibility.getPartialAXTree", {"nodeId": node, "fetchRelatives": False})
    text = found["nodes"][0].get("description", {}).get("value", "")
    assert isinstance(text, str)
    return text
