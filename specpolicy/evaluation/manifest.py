"""What a results folder holds results of: they may only be added to by a run that is configured alike."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from specpolicy.atomic import atomic_path
from specpolicy.differences import differences

FORMAT = 1
MANIFEST = "manifest.json"


class ConfigurationMismatch(ValueError):
    """A results folder belongs to another configuration."""


class ManifestError(ValueError):
    """A manifest is missing or cannot be read."""


@dataclass
class Manifest:
    """The identity of a results folder.

    Attributes:
        configuration: everything that changes what an episode means: task, checkpoint digest, environment, horizons.
            Not the seeds, nor how many environments run side by side: those may change from run to run.
        samplers: the recipe of each sampler by name; a run may bring new ones.
        provenance: where and with what each run was made, oldest first; for the reader, not compared.
    """

    configuration: dict[str, Any]
    samplers: dict[str, dict[str, Any]] = field(default_factory=dict)
    provenance: list[dict[str, Any]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.configuration = _plain(self.configuration, "configuration")
        self.samplers = _plain(self.samplers, "samplers")
        self.provenance = _plain(self.provenance, "provenance")

    def joined(self, other: Manifest, folder: Path) -> Manifest:
        """This manifest extended by another run.

        Raises:
            ConfigurationMismatch: the configurations differ, or a sampler of the same name has another recipe.
        """
        shared = self.samplers.keys() & other.samplers.keys()
        lines = differences(
            {**self.configuration, "samplers": {name: self.samplers[name] for name in shared}},
            {**other.configuration, "samplers": {name: other.samplers[name] for name in shared}},
        )
        if lines:
            raise ConfigurationMismatch(
                f"{folder} holds results of another configuration:\n"
                + "\n".join(lines)
                + "\nWrite to a new folder, or set these fields as they were to continue this one."
            )
        return Manifest(self.configuration, {**self.samplers, **other.samplers}, self.provenance + other.provenance)

    def write(self, folder: Path) -> None:
        """Write ``manifest.json`` at once or not at all."""
        with atomic_path(folder / MANIFEST) as path:
            path.write_text(json.dumps({"format": FORMAT, **asdict(self)}, indent=2) + "\n", encoding="utf-8")

    @classmethod
    def read(cls, folder: Path) -> Manifest:
        """Read ``manifest.json``. Raises :class:`ManifestError` if it is missing, damaged, or of a newer format."""
        path = folder / MANIFEST
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            version = content.pop("format")
            if version != FORMAT:
                raise ManifestError(f"{path} has format {version}, this version reads format {FORMAT}: upgrade")
            return cls(**content)
        except FileNotFoundError:
            raise ManifestError(f"{folder} is not a results folder: it has no {MANIFEST}") from None
        except (KeyError, TypeError, UnicodeDecodeError, json.JSONDecodeError) as error:
            raise ManifestError(
                f"{path} is damaged ({error}): restore it, or move the folder away and start anew"
            ) from error


def _plain(tree: Any, name: str) -> Any:
    """The tree as JSON gives it back, so that what was written compares equal to what was given."""
    try:
        return json.loads(json.dumps(tree))
    except (TypeError, ValueError) as error:
        raise TypeError(f"{name} must be plain data (dict, list, str, numbers, bool, None): {error}") from error
