"""A Ray cluster of several nodes on this machine, as a program of its own that takes commands as lines of JSON.

A program of its own, since Ray may end a process that is connected to a node which dies.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from typing import Any

import ray
from ray import serve
from ray.cluster_utils import Cluster
from ray.serve._private.constants import SERVE_CONTROLLER_NAME, SERVE_NAMESPACE
from ray.serve.api import _run

from serving.ray_serve import build

_NODES_S = 180


class ClusterProgram:
    """One method for each command."""

    def start(self, http_port: int, head: dict[str, Any], nodes: list[dict[str, Any]]) -> str:
        """Start the nodes and Serve; returns the cluster's address."""
        self._cluster = Cluster(initialize_head=True, head_node_args={**_node(head), "include_dashboard": False})
        self._nodes = [self._cluster.add_node(wait=False, **_node(node)) for node in nodes]
        self._cluster.wait_for_nodes(_NODES_S)
        ray.init(address=self._cluster.address, namespace="tests", log_to_driver=False, logging_level="ERROR")
        serve.start(proxy_location="HeadOnly", http_options={"host": "127.0.0.1", "port": http_port})
        return str(self._cluster.address)

    def deploy(self, args: dict[str, Any], wait: bool = True) -> None:
        """Deploy osd, or update it."""
        _run(build(args), name="osd", route_prefix="/", _blocking=wait)

    def delete(self) -> None:
        """Delete osd."""
        serve.delete("osd")

    def replicas(self, deployment: str) -> list[dict[str, Any]]:
        """Id, state, node and process of each replica."""
        details = ray.get(self._controller().get_serve_instance_details.remote())
        app = details["applications"].get("osd", {"deployments": {}})
        return [
            {name: str(one.get(name)) for name in ("replica_id", "node_id", "pid")} | {"state": one["state"].value}
            for one in app["deployments"].get(deployment, {"replicas": []})["replicas"]
        ]

    def available(self, resource: str) -> float:
        """How much of a resource nobody has reserved in the cluster."""
        return float(ray.available_resources().get(resource, 0.0))

    def add_node(self, node: dict[str, Any]) -> None:
        """Add a node."""
        self._nodes.append(self._cluster.add_node(**_node(node)))

    def kill_node(self, node_id: str) -> None:
        """End a node as a loss of power would."""
        node = next(node for node in self._nodes if node.node_id == node_id)
        self._nodes.remove(node)
        self._cluster.remove_node(node, allow_graceful=False)

    def kill_controller(self) -> int:
        """Kill the process of Serve's controller; Ray starts another. Returns its id."""
        pid = int(ray.get(self._controller().get_pid.remote()))
        os.kill(pid, signal.SIGKILL)
        return pid

    def controller_pid(self) -> int:
        """The process id of Serve's controller."""
        return int(ray.get(self._controller().get_pid.remote()))

    def kill_gcs(self) -> None:
        """Kill the GCS, and start it again."""
        head = self._cluster.head_node
        head.kill_gcs_server()
        head.start_gcs_server()

    def stop(self) -> None:
        """Stop everything."""
        ray.shutdown()
        self._cluster.shutdown()

    def _controller(self) -> Any:
        return ray.get_actor(SERVE_CONTROLLER_NAME, namespace=SERVE_NAMESPACE)


def _node(given: dict[str, Any]) -> dict[str, Any]:
    return {"num_cpus": 4, "object_store_memory": 80 << 20, **given}


def main() -> None:
    """Answer each line `[command, arguments]` with a line `{"result": …}` or `{"error": …}`."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print is no answer
    program = ClusterProgram()
    for line in sys.stdin:
        command, args = json.loads(line)
        try:
            answer = {"result": getattr(program, command)(**args)}
        except Exception as error:  # noqa: BLE001 - told to the test
            answer = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    main()
