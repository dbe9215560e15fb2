"""Several machines made of one: each has its own network stack, address, host name, processes and disk.

A machine is a set of Linux namespaces. Machines are plugged into a bridge in a namespace of its own, as into a switch;
this process's machine is plugged in, too. Everything ends with the processes that hold the namespaces.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
import pytest

_NETWORK, _HERE = "198.18.7", 254
"""Of the addresses that RFC 2544 keeps for tests; that of this process's machine ends in `_HERE`."""
_NAMESPACES = ("--net", "--mount", "--uts", "--pid")
_UNSHARE = ("unshare", *_NAMESPACES, "--fork", "--mount-proc", "--kill-child")
_BOOT = """
set -e
echo "$1" > /proc/sys/kernel/hostname
ip link set lo up
mount --bind /dev/null /etc/resolv.conf
shift
for folder; do
    mkdir -p "$folder"
    mount -t tmpfs tmpfs "$folder"
done
echo up
read -r _
"""
"""The first process of a machine. It ends, and with it the machine, when its standard input is closed.

No name server is named, as none could be reached: a program that asks for a name should be told at once.
"""


class Machine:
    """One machine, from its start until `lose`.

    Args:
        name: its host name.
        address: its IPv4 address.
        disk: folders of which it has its own, empty at the start; all others are those of this process.
    """

    def __init__(self, name: str, address: str, disk: Sequence[Path] = ()) -> None:
        self.name, self.address = name, address
        self._commands: list[subprocess.Popen[bytes]] = []
        boot = [*_UNSHARE, "bash", "-c", _BOOT, "bash", name, *map(str, disk)]
        self._holder = subprocess.Popen(boot, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert self._holder.stdout is not None
        if self._holder.stdout.readline() != b"up\n":
            self.lose()
            raise RuntimeError(f"machine {name} does not start")
        (first,) = psutil.Process(self._holder.pid).children()
        self.pid = first.pid
        """Its first process, as seen from here."""

    def run(
        self, *command: object, environment: Mapping[str, str] | None = None, timeout_s: float = 240.0
    ) -> subprocess.CompletedProcess[str]:
        """Run a command on it until the command ends."""
        inside = self._inside(command)
        return subprocess.run(inside, env=environment, capture_output=True, text=True, timeout=timeout_s)

    def start(self, *command: object) -> None:
        """Start a command that runs as long as the machine; what it prints is dropped."""
        inside = self._inside(command)
        self._commands.append(subprocess.Popen(inside, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL))

    def command_lines(self) -> list[str]:
        """Of all its processes."""
        found, mine = [], Path(f"/proc/{self.pid}/ns/pid").readlink()
        for process in psutil.process_iter():
            with suppress(psutil.Error, OSError):  # it ended meanwhile
                if Path(f"/proc/{process.pid}/ns/pid").readlink() == mine:
                    found.append(" ".join(process.cmdline()))
        return found

    def lose(self) -> None:
        """End all its processes at once, as a loss of power would."""
        self._holder.kill()
        self._holder.communicate()
        for one in self._commands:
            one.wait()

    def _inside(self, command: Sequence[object]) -> list[str]:
        return ["nsenter", f"--target={self.pid}", *_NAMESPACES, f"--wdns={Path.cwd()}", *map(str, command)]


class Network:
    """A switch with machines, this process's own among them, from its start until `close`.

    Args:
        disk: folders of which every machine has its own.
    """

    def __init__(self, disk: Sequence[Path]) -> None:
        self._disk = disk
        self._machines: list[Machine] = []
        self._switch = Machine("switch", "")
        self._ip(self._switch.pid, "link add bridge type bridge")
        self._ip(self._switch.pid, "link set bridge up")
        self._plug(os.getpid(), f"osd{os.getpid()}", _HERE)

    def add(self, name: str) -> Machine:
        """A new machine, plugged in."""
        number = len(self._machines) + 1
        machine = Machine(name, f"{_NETWORK}.{number}", self._disk)
        self._machines.append(machine)
        self._plug(machine.pid, "eth0", number)
        # Without a route to other networks, programs find no address of their own.
        self._ip(machine.pid, f"route add default via {_NETWORK}.{_HERE}")
        return machine

    def cut(self, machine: Machine) -> None:
        """Unplug a machine: what it sends and what is sent to it is lost, without a word to either side."""
        self._ip(self._switch.pid, f"link set {_port(machine.pid)} down")

    def mend(self, machine: Machine) -> None:
        """Plug it in again."""
        self._ip(self._switch.pid, f"link set {_port(machine.pid)} up")

    def close(self) -> None:
        """End all machines. This process's device goes with the switch."""
        for machine in (*self._machines, self._switch):
            machine.lose()

    def _plug(self, pid: int, device: str, number: int) -> None:
        """Give the network of a process a device at the switch."""
        port = _port(pid)
        self._ip(self._switch.pid, f"link add {port} type veth peer name {device} netns {pid}")
        self._ip(self._switch.pid, f"link set {port} master bridge up")
        self._ip(pid, f"addr add {_NETWORK}.{number}/24 dev {device}")
        self._ip(pid, f"link set {device} up")

    @staticmethod
    def _ip(pid: int, arguments: str) -> None:
        """Run `ip` in the network of a process."""
        command = ["nsenter", f"--target={pid}", "--net", "ip", *arguments.split()]
        subprocess.run(command, check=True, capture_output=True, text=True)


def _port(pid: int) -> str:
    """The switch's device for the machine of a process."""
    return f"port{pid}"


@contextmanager
def network(disk: Sequence[Path]) -> Iterator[Network]:
    """A network without machines; the test is skipped where this process may not make one."""
    missing = [tool for tool in ("ip", "unshare", "nsenter") if shutil.which(tool) is None]
    if missing:
        pytest.skip(f"{', '.join(missing)} not found (Debian's iproute2 and util-linux)")
    if subprocess.run([*_UNSHARE, "true"], capture_output=True, check=False).returncode:
        pytest.skip("machines are made of Linux namespaces, which needs root")
    made = Network(disk)
    try:
        yield made
    finally:
        made.close()
