"""A service under load, without anybody who looks at it and with open admin pages."""

from __future__ import annotations

import os
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from itertools import cycle
from pathlib import Path
from statistics import median

import httpx
import psutil

from benchmarks.prompts import code_prompts, small_talk_prompts
from benchmarks.server import osd_server

_TOKEN = "of a benchmark"
_MAX_TOKENS = 64
_HISTORY_EVERY_S = 5.0
_WARM_UP_S = 5.0
_PARTS = {"EngineActor": "engine", "SupervisorActor": "supervisor", "actors.driver": "driver", "redis-server": "Redis"}
"""Part of a process's command line to what it is called here; the process that serves HTTP is the parent of all."""


def measure_live(target: str, block_s: float, num_blocks: int, *, num_clients: int, num_pages: int) -> dict[str, float]:
    """Medians over blocks: tokens/s, and each process's share of all processors, without and with open pages.

    Args:
        target: its name or folder.
        block_s: seconds of a block.
        num_blocks: blocks, in turn without and with pages.
        num_clients: queries at a time.
        num_pages: open admin pages.
    """
    found: defaultdict[str, list[float]] = defaultdict(list)
    os.environ["OSD_ADMIN_TOKEN"] = _TOKEN
    with tempfile.TemporaryDirectory(prefix="osd-monitor-") as folder, ExitStack() as stack:
        flags = ["--target", target, "--no-train"]
        url = stack.enter_context(osd_server(Path(folder) / "state", Path(folder) / "log", flags))
        stack.enter_context(_running([lambda stop: _ask(url, stop)] * num_clients))
        time.sleep(_WARM_UP_S)
        for block in range(num_blocks):
            pages = num_pages if block % 2 else 0
            kind = "pages open" if pages else "nobody looks"
            looks: list[Callable[[threading.Event], None]] = [lambda stop: _look(url, stop)] * pages
            with _running([*looks, *[lambda stop: _read_history(url, stop)] * pages]):
                for name, value in _block(url, block_s).items():
                    found[f"{kind}: {name}"].append(value)
    return {name: median(values) for name, values in sorted(found.items())}


def _block(url: str, seconds: float) -> dict[str, float]:
    """Figures of the next seconds."""
    began_s, tokens, used = time.monotonic(), _output_tokens(url), _processor_s()
    time.sleep(seconds)
    took_s = time.monotonic() - began_s
    after = _processor_s()
    shares = {
        f"{name}, % of processors": 100 * (after[name] - used.get(name, 0.0)) / took_s / (os.cpu_count() or 1)
        for name in after
    }
    return {"tokens/s": (_output_tokens(url) - tokens) / took_s, **shares}


def _output_tokens(url: str) -> float:
    lines = httpx.get(f"{url}/metrics", timeout=30).text.splitlines()
    return next(float(line.split()[-1]) for line in lines if line.startswith("osd_output_tokens_total "))


def _processor_s() -> dict[str, float]:
    """Processor seconds of the server's processes so far."""
    used: defaultdict[str, float] = defaultdict(float)
    for process in psutil.Process().children(recursive=True):
        try:
            times, line = process.cpu_times(), " ".join(process.cmdline())
        except psutil.Error:
            continue
        default = "server" if "serving.cli" in line else "Ray's own"
        used[next((name for part, name in _PARTS.items() if part in line), default)] += times.user + times.system
    return dict(used)


@contextmanager
def _running(works: list[Callable[[threading.Event], None]]) -> Iterator[None]:
    """Threads that do something until the block ends."""
    stop = threading.Event()
    threads = [threading.Thread(target=work, args=(stop,)) for work in works]
    for one in threads:
        one.start()
    try:
        yield
    finally:
        stop.set()
        for one in threads:
            one.join()


def _ask(url: str, stop: threading.Event) -> None:
    prompts = cycle([*code_prompts()[:40], *small_talk_prompts()[:40]])
    with httpx.Client(base_url=url, timeout=120) as client:
        (model,) = client.get("/v1/models").json()["data"]
        while not stop.is_set():
            asked = {"model": model["id"], "messages": next(prompts), "max_tokens": _MAX_TOKENS, "temperature": 0}
            client.post("/v1/chat/completions", json=asked).raise_for_status()


def _admin(url: str) -> httpx.Client:
    return httpx.Client(base_url=f"{url}/admin/api", headers={"Authorization": f"Bearer {_TOKEN}"}, timeout=60)


def _look(url: str, stop: threading.Event) -> None:
    """As a page does: follow the live stream."""
    with _admin(url) as client, client.stream("GET", "/live") as answer:
        answer.raise_for_status()
        for _ in answer.iter_lines():
            if stop.is_set():
                return


def _read_history(url: str, stop: threading.Event) -> None:
    """As a page does: both series of the last hour, again and again."""
    with _admin(url) as client:
        while not stop.wait(_HISTORY_EVERY_S):
            for by in ("domain", "engine"):
                client.get("/history", params={"from": -3600, "by": by}).raise_for_status()
