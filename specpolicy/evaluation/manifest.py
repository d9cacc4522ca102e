"""The manifest of a results folder: what its episodes are of, and where each run was made."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from specpolicy.utils.files import atomic_path, differences

FORMAT = 1
MANIFEST = "manifest.json"


class ConfigurationMismatch(ValueError):
    """A results folder belongs to another configuration."""


class ManifestError(ValueError):
    """A manifest is missing or cannot be read."""


class ResultsError(RuntimeError):
    """A file of a results folder cannot be written or read."""


@dataclass
class Manifest:
    """The identity of a results folder.

    Attributes:
        configuration: everything that changes what an episode means: task, checkpoint digest, environment, horizons.
            Not the seeds, nor how many environments run side by side: those may change from run to run.
        samplers: the recipe of each sampler by name; a run may bring new ones.
        provenance: where and with what each run was made, oldest first; for the reader, not compared.
        analysis: what was fixed before the first episode of how results are judged: margin, kind of test, kind of
            seeds. Empty in folders that are older than that; the first run that brings it then says so.
    """

    configuration: dict[str, Any]
    samplers: dict[str, dict[str, Any]] = field(default_factory=dict)
    provenance: list[dict[str, Any]] = field(default_factory=list)
    analysis: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.configuration = _plain(self.configuration, "configuration")
        self.samplers = _plain(self.samplers, "samplers")
        self.provenance = _plain(self.provenance, "provenance")
        self.analysis = _plain(self.analysis, "analysis")

    def joined(self, other: Manifest, folder: Path) -> Manifest:
        """Extend this manifest by another run.

        Args:
            other: of the run.
            folder: whose manifest this is, for the error message.

        Raises:
            ConfigurationMismatch: the configurations differ, a sampler of the same name has another recipe, the network
                is evaluated by another backend or in another precision, or results would be judged otherwise than was
                fixed before the first episode.
        """
        mine, others = dict[str, Any](), dict[str, Any]()
        for name in self.samplers.keys() & other.samplers.keys():
            mine[name], others[name] = dict(self.samplers[name]), dict(other.samplers[name])
            for noted in {"fitted", "network"} - mine[name].keys():  # of a run that did not note it
                others[name].pop(noted, None)
        self._check_networks(other, folder)
        lines = differences({**self.configuration, "samplers": mine}, {**other.configuration, "samplers": others})
        if lines:
            raise ConfigurationMismatch(
                f"{folder} holds results of another configuration:\n"
                + "\n".join(lines)
                + "\nWrite to a new folder, or set these fields as they were to continue this one."
            )
        return Manifest(
            self.configuration,
            {**self.samplers, **other.samplers},
            self.provenance + other.provenance,
            self._joined_analysis(other.analysis, folder),
        )

    def _joined_analysis(self, analysis: dict[str, Any], folder: Path) -> dict[str, Any]:
        if not analysis or not self.analysis:
            late = {"fixed": "after the first run"} if analysis and self.provenance else {}
            return self.analysis or {**analysis, **late}
        fixed = {name: value for name, value in self.analysis.items() if name != "fixed"}
        if lines := differences(fixed, analysis):
            raise ConfigurationMismatch(
                f"{folder} was begun to be judged otherwise:\n"
                + "\n".join(lines)
                + "\nWhat was fixed before the first episode stays: set it as it was, or write to a new folder."
            )
        return self.analysis

    def _check_networks(self, other: Manifest, folder: Path) -> None:
        """Refuse samplers of another backend or precision: their rows would stand in one table unmarked."""
        here, there = ({_network_text(each) for each in manifest.samplers.values()} for manifest in (self, other))
        if here and not there <= here:
            raise ConfigurationMismatch(
                f"{folder} holds samplers whose network was evaluated by {', '.join(sorted(here))}, and this run's "
                f"by {', '.join(sorted(there))}: give the same compile= and precision=, or another folder with out="
            )

    def write(self, folder: Path) -> None:
        """Write ``manifest.json`` completely or not at all.

        Args:
            folder: the results folder.

        Raises:
            ResultsError: it cannot be written.
        """
        with written(folder / MANIFEST) as path:
            path.write_text(json.dumps({"format": FORMAT, **asdict(self)}, indent=2) + "\n", encoding="utf-8")

    @classmethod
    def read(cls, folder: Path) -> Manifest:
        """Read ``manifest.json`` as plain data; nothing that it names is resolved.

        Args:
            folder: the results folder.

        Raises:
            ManifestError: it is missing, damaged, or of a newer format.
        """
        path = folder / MANIFEST
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise ManifestError(f"{folder} is not a results folder: it has no {MANIFEST}") from None
        except OSError as error:
            raise ManifestError(f"{path} cannot be read ({error.strerror})") from error
        except (ValueError, RecursionError) as error:
            raise _damaged(path, " ".join(str(error).split())) from error
        if not isinstance(content, dict) or "format" not in content:
            raise _damaged(path, "expected an object with a format")
        version = content.pop("format")
        if version != FORMAT:
            raise ManifestError(
                f"{path} has format {json.dumps(version)[:40]}, this version reads format {FORMAT}: upgrade specpolicy"
            )
        if unknown := content.keys() - cls.__dataclass_fields__.keys():
            raise _damaged(path, f"unknown entry {min(unknown)[:40]!r}")
        if not isinstance(content.get("configuration"), dict):
            raise _damaged(path, "configuration must be an object")
        samplers, provenance = content.get("samplers", {}), content.get("provenance", [])
        if not isinstance(samplers, dict) or not all(isinstance(each, dict) for each in samplers.values()):
            raise _damaged(path, "samplers must be an object of objects")
        if not all(isinstance(each.get("exact", False), bool) for each in samplers.values()):
            raise _damaged(path, "a sampler's exact must be true or false")
        if not isinstance(content.get("analysis", {}), dict):
            raise _damaged(path, "analysis must be an object")
        if not all(isinstance(each.get("network", {}), dict) for each in samplers.values()):
            raise _damaged(path, "a sampler's network must be an object")
        if not isinstance(provenance, list) or not all(isinstance(each, dict) for each in provenance):
            raise _damaged(path, "provenance must be a list of objects")
        return cls(**content)


def manifest_precision(entry: Mapping[str, Any]) -> str | None:
    """Look up in which reduced precision a sampler's network was computed; None for the network as it was loaded.

    Args:
        entry: of the sampler in a manifest.
    """
    precision = entry.get("network", {}).get("precision", "f32")
    return None if precision == "f32" else str(precision)


def _network_text(entry: Mapping[str, Any]) -> str:
    network, recipe = entry.get("network"), entry.get("recipe")
    if network is None and isinstance(recipe, dict) and "backend" in recipe:  # of a run that did not note it
        network = {"backend": recipe["backend"], "precision": recipe.get("precision") or "f32"}
    return f"{network.get('backend')} in {network.get('precision')}" if network else "PyTorch"


def _damaged(path: Path, reason: str) -> ManifestError:
    return ManifestError(f"{path} is damaged ({reason}): restore it, or move the folder away and start anew")


def _plain(tree: Any, name: str) -> Any:
    """Return the tree as JSON gives it back, so that what was written compares equal to what was given."""
    try:
        return json.loads(json.dumps(tree))
    except (TypeError, ValueError) as error:
        raise TypeError(f"{name} must be plain data (dict, list, str, numbers, bool, None): {error}") from error


@contextmanager
def written(path: Path) -> Iterator[Path]:
    """Give a temporary path that replaces ``path`` when the block succeeds; say in one line why it cannot be written.

    Args:
        path: the file to write.

    Raises:
        ResultsError: the disk is full, read-only, gone, ...
    """
    try:
        with atomic_path(path) as temporary:
            yield temporary
    except OSError as error:
        raise ResultsError(
            f"{path} could not be written ({error.strerror or error}); what was written before is unharmed: make room "
            "or give another folder with out=, then run the same command again"
        ) from error
