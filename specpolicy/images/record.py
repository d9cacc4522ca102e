"""What is kept of each batch of images, written as it goes."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from specpolicy.atomic import atomic_path
from specpolicy.speculative import SampleResult


@dataclass(frozen=True)
class Batch:
    """One call of a pipeline.

    Attributes:
        images: numbers of its images. seconds: of the whole call, decoding included.
        steps: of the chain. exact: whether it has the law of that chain.
        passes, evaluations: of each image: passes in sequence, and states that the network was asked about.
        rounds: for each image ``[position, drafted, accepted]`` of each round; empty for stock pipelines.
    """

    images: list[int]
    seconds: float
    steps: int
    exact: bool
    passes: list[int]
    evaluations: list[int]
    rounds: list[list[list[int]]] = field(default_factory=list)

    @staticmethod
    def of(images: list[int], seconds: float, steps: int, exact: bool, account: SampleResult) -> Batch:
        """Take the numbers out of a sampler's account."""
        rounds: list[list[list[int]]] = []
        if account.start is not None and account.proposed is not None and account.accepted is not None:
            columns = zip(account.start.T, account.proposed.T, account.accepted.T, strict=True)
            rounds = [
                [list(map(int, row)) for row in zip(*column, strict=True) if int(row[0]) >= 0] for column in columns
            ]
        return Batch(images, seconds, steps, exact, account.passes.tolist(), account.evaluations.tolist(), rounds)


class Folder:
    """The results of one job: settings, and for each sampler its images and batches.

    Raises:
        ValueError: the folder holds results of other settings; the message names them.
    """

    def __init__(self, path: Path, settings: dict[str, Any]) -> None:
        self.path, known = path, path / "settings.json"
        path.mkdir(parents=True, exist_ok=True)
        if known.is_file():
            there = json.loads(known.read_text(encoding="utf-8"))
            other = sorted(name for name in settings if there.get(name) != settings[name])
            if other:
                raise ValueError(
                    f"{path} holds images of other settings ({', '.join(other)}); give another folder, out=..."
                )
        else:
            with atomic_path(known) as temporary:
                temporary.write_text(json.dumps(settings, indent=1) + "\n", encoding="utf-8")

    def image(self, sampler: str, number: int) -> Path:
        """Where an image is."""
        return self.path / sampler / f"{number:05d}.png"

    def batches(self, sampler: str) -> list[Batch]:
        """The batches that are complete."""
        file = self.path / sampler / "batches.json"
        if not file.is_file():
            return []
        return [Batch(**each) for each in json.loads(file.read_text(encoding="utf-8"))]

    def add(self, sampler: str, batch: Batch, images: list[Any]) -> None:
        """Keep a batch: its images first, then its entry."""
        (self.path / sampler).mkdir(exist_ok=True)
        for number, image in zip(batch.images, images, strict=True):
            with atomic_path(self.image(sampler, number)) as temporary:
                image.save(temporary, format="png")
        with atomic_path(self.path / sampler / "batches.json") as temporary:
            kept = [asdict(each) for each in [*self.batches(sampler), batch]]
            temporary.write_text(json.dumps(kept) + "\n", encoding="utf-8")
