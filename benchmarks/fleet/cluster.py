"""A Ray cluster of several nodes on this machine (`program.py`), as tests and benchmarks use it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Self

_ROOT = Path(__file__).parents[2]
_LOOK_S = 0.2


class ServeCluster:
    """Started on entry, stopped on exit.

    Args:
        home: the home folder of all its processes.
        http_port: where the head's HTTP proxy listens.
        head: further arguments of the head node, such as `resources`.
        nodes: the same of each further node.
        environment: of all its processes, beside this one's.
    """

    def __init__(
        self,
        home: Path,
        http_port: int,
        *,
        head: dict[str, Any],
        nodes: list[dict[str, Any]],
        environment: dict[str, str] | None = None,
    ) -> None:
        self.url = f"http://127.0.0.1:{http_port}"
        self._start = {"http_port": http_port, "head": head, "nodes": nodes}
        self._environment = {
            **os.environ,
            "HOME": str(home),
            "XDG_CACHE_HOME": os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache"),
            "PYTHONPATH": str(_ROOT),
            "RAY_AUTH_MODE": "disabled",  # a Ray that this process started may have left "token" in its environment
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_enable_metrics_collection": "0",
            "RAY_SERVE_LOG_TO_STDERR": "0",
            "RAY_raylet_start_wait_time_s": "180",
            "RAY_worker_niceness": "0",
            # A node that is gone refuses connections at once, and is given up after five refusals; by default that is
            # 15 s. One that is slow has ten seconds for each answer, as ever.
            "RAY_health_check_period_ms": "500",
            "RAY_SERVE_REPLICA_AUTOSCALING_METRIC_PUSH_INTERVAL_S": "1",
            "RAY_SERVE_HANDLE_AUTOSCALING_METRIC_PUSH_INTERVAL_S": "1",
            **(environment or {}),
        }

    def __enter__(self) -> Self:
        self._program = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.fleet.program"],
            cwd=_ROOT,
            env=self._environment,
            text=True,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        try:
            self.address = self.do("start", **self._start)
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self.do("stop")
        finally:
            self._end()

    def _end(self) -> None:
        """Let the program end, or else kill it; its Ray processes end with it."""
        assert self._program.stdin is not None and self._program.stdout is not None
        self._program.stdin.close()
        try:
            self._program.wait(30)
        except subprocess.TimeoutExpired:
            self._program.kill()
            self._program.wait()
        self._program.stdout.close()

    def do(self, command: str, **args: Any) -> Any:
        """Have the program do something (a method of `ClusterProgram`), and return its result."""
        assert self._program.stdin is not None and self._program.stdout is not None
        self._program.stdin.write(json.dumps([command, args]) + "\n")
        self._program.stdin.flush()
        line = self._program.stdout.readline()
        if not line:
            raise RuntimeError(f"the cluster's program ended at {command!r}")
        answer = json.loads(line)
        if "error" in answer:
            raise RuntimeError(f"{command}: {answer['error']}")
        return answer["result"]

    def running(self, deployment: str, num: int | None = None, *, patience_s: float = 120.0) -> list[dict[str, str]]:
        """The running replicas of a deployment.

        Args:
            deployment: its name.
            num: wait until so many run, and none is in another state; None: do not wait.
            patience_s: how long.

        Raises:
            TimeoutError: there are not so many in time.
        """
        deadline_s = time.monotonic() + patience_s
        while True:
            replicas = self.do("replicas", deployment=deployment)
            running = [one for one in replicas if one["state"] == "RUNNING"]
            if num is None or len(running) == len(replicas) == num:
                return running
            if time.monotonic() > deadline_s:
                raise TimeoutError(f"waited {patience_s:g} s for {num} replicas of {deployment!r}: {replicas}")
            time.sleep(_LOOK_S)
