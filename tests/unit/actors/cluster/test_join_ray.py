"""A Ray cluster that cannot be joined is explained in one line."""

from __future__ import annotations

import inspect
import os
import re
import socket

import psutil
import pytest
from ray._private.services import get_node_to_connect_for_driver
from ray._private.utils import check_version_info, compute_version_info

from actors.cluster.join_ray import check_address, check_node, native_errors, why_not_joined
from osd.records.errors import OsdError


def test_an_address_where_nothing_listens_is_said_at_once() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
        with pytest.raises(
            OsdError, match=rf"no Ray answers at cluster.address '{address}' .*ray start --head"
        ) as told:
            check_address(address)
        assert "\n" not in str(told.value)
        free.listen()
        check_address(address)


@pytest.mark.parametrize("address", ["", "auto", "local", "ray://127.0.0.1:9"])
def test_other_addresses_are_left_to_ray(address: str) -> None:
    check_address(address)


def test_an_unknown_host_is_said() -> None:
    with pytest.raises(OsdError, match="no Ray answers at cluster.address 'no-such-host.invalid:6379'"):
        check_address("no-such-host.invalid:6379")


def test_another_version_is_named_with_the_fix() -> None:
    """From what the installed Ray itself says."""
    ours = compute_version_info()
    with pytest.raises(RuntimeError) as said:
        check_version_info({"ray_version": "2.9.3", "python_version": ours[1]}, "10.0.0.7")
    message = why_not_joined("10.0.0.1:6379", said.value)
    assert message.startswith(
        f"the Ray cluster '10.0.0.1:6379' runs Ray 2.9.3 with Python {ours[1]}, osd here Ray {ours[0]}"
    )
    assert "pip install ray==2.9.3" in message and "\n" not in message


def test_a_machine_without_a_node_is_told_how_to_get_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(psutil, "process_iter", lambda attrs: iter(()))
    with pytest.raises(
        OsdError, match="no node of the Ray cluster '10.0.0.1:6379' runs on this machine; .* --num-cpus=0"
    ):
        check_node("10.0.0.1:6379")
    check_node("ray://10.0.0.1:10001")


def test_a_machine_that_is_a_node_of_another_cluster_is_told_the_same() -> None:
    """In the words of the installed Ray, which finds no node of the cluster among the processes here."""
    source = inspect.getsource(get_node_to_connect_for_driver)
    (words,) = re.findall(r"No node info found[^:]*", source)
    message = why_not_joined("10.0.0.1:6379", RuntimeError(f"{words}: '' when trying to resolve"))
    assert message.startswith("no node of the Ray cluster '10.0.0.1:6379' runs on this machine")


def test_another_token_is_said_by_rays_core_only(capfd: pytest.CaptureFixture[str]) -> None:
    with native_errors() as errors:
        os.write(
            2, b"gcs_client.cc:210: Unauthenticated: RPC error: InvalidAuthToken: Authentication token is missing\n"
        )
        errors.seek(0)
        message = why_not_joined("10.0.0.1:6379", ConnectionError("Failed to connect"), errors.read())
    assert message.startswith("the Ray cluster '10.0.0.1:6379' asks for another token; set RAY_AUTH_MODE=token and")
    os.write(2, b"shown again")
    assert capfd.readouterr().err == "shown again"


def test_anything_else_names_the_address() -> None:
    message = why_not_joined("10.0.0.1:6379", RuntimeError("first line\nmore"))
    assert message.startswith("cannot join the Ray cluster '10.0.0.1:6379': ") and "\n" not in message
