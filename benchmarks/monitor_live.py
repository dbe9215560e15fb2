"""A service under load, without anybody who looks at it and with open admin pages."""

from __future__ import annotations

import os
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
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
_NUM_PROMPTS = 6
"""Of each kind; so few that every block asks all of them, and blocks are alike."""
_KINDS = ("nobody looks", "pages open")
_OF_PROCESSORS = ", % of processors"
_PARTS = {"EngineActor": "engine", "SupervisorActor": "supervisor", "actors.driver": "driver", "redis-server": "Redis"}
"""Part of a process's command line to what it is called here; the process that serves HTTP is the parent of all."""


def measure_live(target: str, block_s: float, num_blocks: int, *, num_clients: int, num_pages: int) -> dict[str, float]:
    """Medians over blocks: tokens/s, and each process's share of all processors, without and with open pages.

    Blocks come in pairs, one without and one with pages; the order changes from pair to pair, so that a machine that
    slows down favours neither. One block before them, which is not counted, warms up. The lookup is off: it would copy
    the answers to prompts that were asked before, and so make every block quicker than the one before.

    Args:
        target: its name or folder.
        block_s: seconds of a block.
        num_blocks: blocks, an even number.
        num_clients: queries at a time.
        num_pages: open admin pages.
    """
    blocks: dict[str, list[dict[str, float]]] = {kind: [] for kind in _KINDS}
    os.environ["OSD_ADMIN_TOKEN"] = _TOKEN
    with tempfile.TemporaryDirectory(prefix="osd-monitor-") as folder, ExitStack() as stack:
        flags = ["--target", target, "--no-train", "--no-drafter.suffix"]
        url = stack.enter_context(osd_server(Path(folder) / "state", Path(folder) / "log", flags))
        stack.enter_context(_running([lambda stop: _ask(url, stop)] * num_clients))
        _block(url, block_s)
        for pair in range(num_blocks // 2):
            for kind in _KINDS[:: 1 if pair % 2 == 0 else -1]:
                pages = num_pages if kind == "pages open" else 0
                looks: list[Callable[[threading.Event], None]] = [lambda stop: _look(url, stop)] * pages
                with _running([*looks, *[lambda stop: _read_history(url, stop)] * pages]):
                    blocks[kind].append(_block(url, block_s))
    return summary(*blocks.values())


def summary(alone: Sequence[dict[str, float]], watched: Sequence[dict[str, float]]) -> dict[str, float]:
    """Medians of blocks without and with open pages, and what follows from both.

    Args:
        alone: figures of each block while nobody looks.
        watched: of the block beside each of them, with open pages.
    """
    found = {
        f"{kind}: {name}": median(block.get(name, 0.0) for block in blocks)
        for kind, blocks in zip(_KINDS, (alone, watched), strict=True)
        for name in sorted(blocks[0])
    }
    slower = [1 - after["tokens/s"] / before["tokens/s"] for before, after in zip(alone, watched, strict=True)]
    shares = [name for name in alone[0] if name.endswith(_OF_PROCESSORS)]
    supervisor = f"supervisor{_OF_PROCESSORS}"
    others = [name for name in shares if not name.startswith(("engine", "supervisor"))]
    more = sum(found.get(f"{_KINDS[1]}: {name}", 0.0) - found[f"{_KINDS[0]}: {name}"] for name in others)
    return {
        **found,
        "tokens/s lost by open pages, %, median of pairs": 100 * median(slower),
        "least of the pairs, %": 100 * min(slower),
        "most of the pairs, %": 100 * max(slower),
        f"monitor alone{_OF_PROCESSORS}": found[f"{_KINDS[0]}: {supervisor}"],
        f"monitor with open pages{_OF_PROCESSORS}": found[f"{_KINDS[1]}: {supervisor}"] + more,
    }


def _block(url: str, seconds: float) -> dict[str, float]:
    """Figures of the next seconds."""
    began_s, tokens, used = time.monotonic(), _committed_tokens(url), _processor_s()
    time.sleep(seconds)
    took_s, more = time.monotonic() - began_s, _committed_tokens(url) - tokens
    after = _processor_s()
    shares = {
        f"{name}{_OF_PROCESSORS}": 100 * (after[name] - used.get(name, 0.0)) / took_s / (os.cpu_count() or 1)
        for name in after
    }
    return {"tokens/s": more / took_s, **shares}


def _committed_tokens(url: str) -> float:
    """So far, of queries under way as well; output tokens are counted when a query ends."""
    lines = httpx.get(f"{url}/metrics", timeout=30).text.splitlines()
    return next(float(line.split()[-1]) for line in lines if line.startswith("osd_committed_total "))


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
    prompts = cycle([*code_prompts()[:_NUM_PROMPTS], *small_talk_prompts()[:_NUM_PROMPTS]])
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
