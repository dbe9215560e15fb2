"""Takes the pictures of docs/images, of a real service with real traffic.

    python -m tests.browser.pictures [--target smollm2] [--minutes 6] [--pause 60] [--out docs/images] [--serve-flag=…]

A service with an empty state folder answers code, small talk and tool calls for so many minutes, each under its domain,
and learns from them. After half of the time `code` gets tool calls whose answers are sampled wildly: a drift. An
operator publishes the trainer's candidate, rolls back, freezes a domain, and restarts everything. What the pictures
show is what came of that; the playground answers when nobody else asks.
"""

from __future__ import annotations

import argparse
import base64
import os
import tempfile
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from io import BytesIO
from itertools import cycle
from pathlib import Path
from typing import Any

import httpx
from PIL import Image
from selenium import webdriver

from benchmarks.prompts import code_prompts, small_talk_prompts, tool_call_prompts
from benchmarks.server import osd_server
from osd.text.prompt_file import Messages
from tests.browser.chromium import start_chromium
from tests.browser.driving import choose, click, find, look, script, sign_in, text_of, wait

_TOKEN = "of the pictures"
_MAX_TOKENS = 48
_SHOWN = {"light": (1280, "light", None), "dark": (1280, "dark", 2300), "wide": (1920, "light", 1500)}
_SHOWN |= {"tablet": (768, "dark", 1500), "narrow": (360, "light", 2600)}
"""Picture to its width, theme and height in CSS pixels; None: the whole page."""


class Traffic:
    """Clients that never pause, one for each domain, until the block ends."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._prompts: dict[str, Iterator[Messages]] = {}
        self._temperatures: dict[str, float] = {}
        self._stop = threading.Event()

    def send(self, domain: str, prompts: Sequence[Messages], temperature: float = 0.0) -> None:
        """From now on a domain gets these prompts."""
        self._prompts[domain], self._temperatures[domain] = cycle(prompts), temperature

    def go_on(self, seconds: float) -> None:
        """Let it run."""
        self._stop.wait(seconds)

    @contextmanager
    def running(self) -> Iterator[None]:
        """Ask."""
        clients = [threading.Thread(target=self._ask, args=(domain,)) for domain in self._prompts]
        for client in clients:
            client.start()
        try:
            yield
        finally:
            self._stop.set()
            for client in clients:
                client.join(300)

    def _ask(self, domain: str) -> None:
        with httpx.Client(base_url=self._url, timeout=300) as client:
            (model,) = client.get("/v1/models").json()["data"]
            while not self._stop.is_set():
                body = {
                    "model": model["id"],
                    "messages": next(self._prompts[domain]),
                    "max_tokens": _MAX_TOKENS,
                    "temperature": self._temperatures[domain],
                    "osd": {"domain": domain},
                }
                client.post("/v1/chat/completions", json=body).raise_for_status()


def _traffic(url: str) -> Traffic:
    traffic = Traffic(url)
    for domain, prompts in {"code": code_prompts(), "chat": small_talk_prompts(), "tools": tool_call_prompts()}.items():
        traffic.send(domain, prompts)
    return traffic


def _admin(url: str, path: str, **body: object) -> Any:
    headers = {"Authorization": f"Bearer {_TOKEN}", "X-OSD-Operator": "anna"}
    answer = httpx.post(f"{url}/admin/api/{path}", json=body, headers=headers, timeout=60)
    return answer.raise_for_status()


def _serving(url: str) -> int:
    """The drafter version that serves."""
    status = httpx.get(f"{url}/admin/api/status", headers={"Authorization": f"Bearer {_TOKEN}"}, timeout=60)
    return int(status.raise_for_status().json()["engine"]["drafter_version"])


def first_run(url: str, minutes: float) -> None:
    """Traffic, a shift of it, and what an operator does meanwhile."""
    tenth_s = 6 * minutes
    traffic = _traffic(url)
    with traffic.running():
        traffic.go_on(4 * tenth_s)
        before = _serving(url)
        _admin(url, "publish")
        traffic.go_on(tenth_s)
        traffic.send("code", tool_call_prompts(seed=1), temperature=2.0)
        _admin(url, "freeze", domain="tools")
        traffic.go_on(3 * tenth_s)
        if _serving(url) != before:
            _admin(url, "roll_back", to=before, reason="a demonstration")
        traffic.go_on(2 * tenth_s)


def take_pictures(browser: webdriver.Chrome, url: str, folder: Path) -> None:
    """Of the whole page, while there is traffic."""
    look(browser, width=1280)
    sign_in(browser, url, _TOKEN)
    choose(browser, "#range", "15 minutes")
    wait(browser, lambda: "code" in text_of(browser, "summary"))
    for name, (width, theme, height) in _SHOWN.items():
        look(browser, width=width, theme=theme)
        script(browser, "document.activeElement.blur(); scrollTo(0, 0)")
        wait(browser, lambda: script(browser, "return !document.getElementById('dashboard').matches('.stale')"))
        _save(browser, folder / f"admin-{name}.png", width, height)


def take_playground(browser: webdriver.Chrome, folder: Path) -> None:
    """Of the playground, once it has answered."""
    look(browser, width=1280)
    click(browser, "#ask")
    wait(browser, lambda: find(browser, "#ask").is_enabled() and text_of(browser, "plain-figures"))
    script(browser, "scrollTo(0, 0)")
    box = script(browser, "return document.querySelector('[aria-labelledby=playground-title]').getBoundingClientRect()")
    _save(browser, folder / "playground.png", 1280, box["height"] + 28, top=box["y"] - 14)


def _save(browser: webdriver.Chrome, path: Path, width: int, height: float | None, *, top: float = 0.0) -> None:
    """A part of the page, also what would have to be scrolled to."""
    all_of_it = script(browser, "return document.documentElement.scrollHeight")
    clip = {"x": 0, "y": top, "width": width, "height": height or all_of_it, "scale": 1}
    taken = browser.execute_cdp_cmd("Page.captureScreenshot", {"captureBeyondViewport": True, "clip": clip})
    image = Image.open(BytesIO(base64.b64decode(taken["data"])))
    image.convert("RGB").quantize(method=Image.Quantize.MAXCOVERAGE).save(path, optimize=True)


def main() -> None:
    """Run the service twice, and take the pictures of the second run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--target", default="smollm2")
    parser.add_argument("--minutes", type=float, default=6.0, help="Of traffic before the restart.")
    parser.add_argument("--pause", type=float, default=60.0, help="Seconds between the two runs.")
    parser.add_argument("--out", type=Path, default=Path("docs/images"))
    parser.add_argument("--serve-flag", action="append", default=[], help="Passed on to `osd serve`.")
    options = parser.parse_args()
    os.environ["OSD_ADMIN_TOKEN"] = _TOKEN
    options.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="osd-pictures-") as folder:
        state, flags = Path(folder) / "state", ["--target", options.target, *options.serve_flag]
        with osd_server(state, Path(folder) / "first.log", flags) as url:
            first_run(url, options.minutes)
        threading.Event().wait(options.pause)
        browser = start_chromium(Path(folder) / "profile")
        if browser is None:
            raise SystemExit("no chromium here: apt-get install -y chromium chromium-driver")
        try:
            with osd_server(state, Path(folder) / "second.log", flags) as url:
                traffic = _traffic(url)
                with traffic.running():
                    traffic.go_on(30)
                    take_pictures(browser, url, options.out)
                take_playground(browser, options.out)
        finally:
            browser.quit()


if __name__ == "__main__":
    main()
