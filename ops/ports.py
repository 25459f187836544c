"""Free TCP ports on the loopback interface."""

from __future__ import annotations

import random
import socket

_HOST = "127.0.0.1"
_PORTS = range(16384, 32768)


def free_ports(count: int) -> list[int]:
    """Loopback TCP ports that nobody listens on just now, all different.

    From below the range that systems take outgoing connections' ports from: a node that is down for a while must
    find its port free when it comes back.
    """
    ports: list[int] = []
    for port in random.SystemRandom().sample(_PORTS, len(_PORTS)):
        with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as sock:
            try:
                sock.bind((_HOST, port))
            except OSError:
                continue
        ports.append(port)
        if len(ports) == count:
            return ports
    raise OSError("no free ports on the loopback interface")
