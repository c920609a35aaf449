"""Network namespaces of one machine: hosts that see each other through a bridge alone (Linux, root, iproute2)."""

from __future__ import annotations

import contextlib
import itertools
import os
import shutil
import subprocess
from collections.abc import Iterator, Sequence


class NamespaceError(ValueError):
    """This machine cannot make network namespaces."""


class Bridge:
    """A bridge with an address of its own; `add` makes a host behind it. A /24 of 10.0.0.0/8, not used before."""

    def __init__(self) -> None:
        if shutil.which("ip") is None:
            raise NamespaceError("network namespaces need the program 'ip'; install iproute2, or leave --netns out")
        if os.geteuid() != 0:
            raise NamespaceError("network namespaces need root; run as root, or leave --netns out")
        self.name = f"fedkd{os.getpid() % 1_000_000}"
        taken = _ip("-4", "-o", "address").stdout
        nets = (f"10.{a}.{b}" for a, b in itertools.product(range(77, 254), range(1, 254)))
        self.net = next(net for net in nets if f" {net}." not in taken)
        self.hosts: dict[str, str] = {}
        _ip("link", "add", self.name, "type", "bridge")
        _ip("address", "add", f"{self.address}/24", "dev", self.name)
        _ip("link", "set", self.name, "up")

    @property
    def address(self) -> str:
        """Where this machine itself is on the bridge."""
        return f"{self.net}.1"

    def add(self, host: str) -> str:
        """Make the namespace of a host; its address. It has a loopback of its own and no route but the bridge's."""
        number = len(self.hosts) + 2
        namespace, outside, inside = f"{self.name}-{host}", f"fk{os.getpid() % 100_000}v{number}", "eth0"
        _ip("netns", "add", namespace)
        self.hosts[host] = namespace
        _ip("link", "add", outside, "type", "veth", "peer", "name", inside, "netns", namespace)
        _ip("link", "set", outside, "master", self.name, "up")
        within = ("netns", "exec", namespace, "ip")
        _ip(*within, "address", "add", f"{self.net}.{number}/24", "dev", inside)
        _ip(*within, "link", "set", inside, "up")
        _ip(*within, "link", "set", "lo", "up")
        return f"{self.net}.{number}"

    def inside(self, host: str) -> list[str]:
        """What a command line begins with to run in a host."""
        return ["ip", "netns", "exec", self.hosts[host]]

    def close(self) -> None:
        """Remove all hosts and the bridge."""
        for namespace in self.hosts.values():
            with contextlib.suppress(NamespaceError):
                _ip("netns", "delete", namespace)
        with contextlib.suppress(NamespaceError):
            _ip("link", "delete", self.name)


@contextlib.contextmanager
def bridge() -> Iterator[Bridge]:
    """A bridge for the block; NamespaceError with what lacks when there can be none."""
    made = Bridge()
    try:
        yield made
    finally:
        made.close()


def _ip(*words: str) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(["ip", *words], capture_output=True, text=True)
    if done.returncode:
        reason: Sequence[str] = done.stderr.strip().splitlines() or ["no reason given"]
        raise NamespaceError(f"`ip {' '.join(words)}` failed: {reason[-1]}; leave --netns out to do without")
    return done
