"""What the browser tests do with the page."""

from __future__ import annotations

from collections.abc import Callable
from hashlib import sha256
from typing import Any

from fastapi import FastAPI
from selenium import webdriver
from selenium.common.exceptions import StaleElementReferenceException
from selenium.webdriver.common.by import By
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.ui import Select, WebDriverWait

from osd.config.settings import load_config
from serving.app import create_app
from tests.kit.fakes import FakeCodec, FakeEngineClient

TOKEN = "a-long-admin-token"


def page_app(engine: FakeEngineClient) -> FastAPI:
    """The app over a fake engine; the page is sent a snapshot several times a second rather than every two seconds."""
    app = create_app(load_config(), engine, FakeCodec(), admin_token_sha256=sha256(TOKEN.encode()).hexdigest())
    app.state.snapshots.tick_s = 0.2
    return app


def find(browser: webdriver.Chrome, selector: str) -> WebElement:
    return browser.find_element(By.CSS_SELECTOR, selector)


def text_of(browser: webdriver.Chrome, element_id: str) -> str:
    return browser.find_element(By.ID, element_id).text


def content(browser: webdriver.Chrome, selector: str) -> str:
    """An element's text, shown or not."""
    return find(browser, selector).get_attribute("textContent") or ""


def focused_id(browser: webdriver.Chrome) -> str | None:
    return browser.switch_to.active_element.get_attribute("id")


def wait(browser: webdriver.Chrome, condition: Callable[[], object]) -> None:
    WebDriverWait(browser, 60, poll_frequency=0.05).until(lambda _: condition())


def script(browser: webdriver.Chrome, code: str, *arguments: object) -> Any:
    return browser.execute_script(code, *arguments)


def sign_in(browser: webdriver.Chrome, url: str, token: str = TOKEN) -> None:
    browser.get(f"{url}/admin")
    wait(browser, browser.find_element(By.ID, "token").is_displayed)
    browser.find_element(By.ID, "token").send_keys(token)
    click(browser, "#login button")


def open_dashboard(browser: webdriver.Chrome, url: str) -> None:
    sign_in(browser, url)
    wait(browser, lambda: text_of(browser, "now-length") and text_of(browser, "now-version"))


def click(browser: webdriver.Chrome, selector: str) -> None:
    """Click what is there; found again where a snapshot replaces it between the two."""

    def is_clicked() -> bool:
        try:
            find(browser, selector).click()
        except StaleElementReferenceException:
            return False
        return True

    wait(browser, is_clicked)


def look(browser: webdriver.Chrome, *, width: int, theme: str = "light") -> None:
    """Show pages at this width, in CSS pixels, and in this theme."""
    size = {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": False}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    feature = {"name": "prefers-color-scheme", "value": theme}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [feature]})


def faults(browser: webdriver.Chrome) -> list[str]:
    """What the console has of errors since it was last read."""
    console = browser.get_log("browser")  # type: ignore[no-untyped-call]  # selenium left it untyped
    return [one["message"] for one in console if one["level"] == "SEVERE"]


def script_errors(browser: webdriver.Chrome) -> list[str]:
    """What `faults` has beside requests that failed or were refused, which some tests mean to happen."""
    return [one for one in faults(browser) if "Failed to load resource" not in one and "net::ERR_" not in one]


def let_pass(browser: webdriver.Chrome, seconds: float) -> None:
    """Set the page's clock forward."""
    script(browser, "const now = Date.now; Date.now = () => now() + 1000 * arguments[0]", seconds)


def choose(browser: webdriver.Chrome, selector: str, option: str) -> None:
    """Choose an option of a list by its text, once the list is shown."""
    wait(browser, lambda: find(browser, selector).is_displayed())
    Select(find(browser, selector)).select_by_visible_text(option)


def drawn(browser: webdriver.Chrome) -> dict[str, Any]:
    """What the chart of acceptance rates shows: lines, number of points, and the range in seconds since the epoch."""
    found: dict[str, Any] = script(browser, "return osd.charts.charts.rate.drawn")
    return found


def open_history(browser: webdriver.Chrome, url: str) -> None:
    """Sign in, and wait until there are lines."""
    open_dashboard(browser, url)
    wait(browser, lambda: drawn(browser)["lines"])
