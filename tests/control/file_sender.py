"""Stands for the connection to a robot. It imports little, for the watchdog's process imports it."""

from __future__ import annotations

from pathlib import Path


class FileSender:
    """Appends what it sends to a file; ``fails`` of its calls raise first."""

    def __init__(self, path: Path, fails: int = 0) -> None:
        self.path, self.fails = path, fails

    def open(self) -> None:
        if self.path.is_dir():
            raise OSError("no such robot")

    def __call__(self, action: tuple[float, ...]) -> None:
        if self.fails > 0:
            self.fails -= 1
            raise OSError("the line is busy")
        with self.path.open("a") as file:
            file.write(" ".join(map(str, action)) + "\n")

    def sent(self) -> list[list[float]]:
        return [[float(each) for each in line.split()] for line in self.path.read_text().splitlines()]
