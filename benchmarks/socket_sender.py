"""Stands for the connection to a robot. It imports little, for the watchdog's process imports it."""

from __future__ import annotations

import socket
import struct
import time
from collections.abc import Sequence
from dataclasses import dataclass

MESSAGE = struct.Struct("=q2d")


@dataclass(frozen=True)
class SocketSender:
    """Sends the time and an action of two numbers to a socket of this machine."""

    address: str

    def __call__(self, action: Sequence[float]) -> None:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as connection:
            connection.sendto(MESSAGE.pack(time.monotonic_ns(), *action), self.address)
