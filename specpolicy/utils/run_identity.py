"""Note what decides a folder's results, and refuse to go on with anything else."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from specpolicy.utils.files import atomic_path, differences


class OtherRunError(ValueError):
    """A folder belongs to another run than the one that is to go on in it."""


def claim_folder(
    folder: str | Path,
    identity: Mapping[str, Any],
    *,
    name: str,
    free: Collection[str] = (),
    traces: Collection[str] = (),
) -> bool:
    """Note in a folder what decides its results; if something is noted already, it must be the same.

    Args:
        folder: of the run; it is made if need be.
        identity: everything that changes the results, as plain JSON types: settings, data by digest, code.
        name: file in ``folder`` that holds the identity.
        free: entries of ``identity`` that may change from call to call; top level or dotted.
        traces: patterns of files that a run leaves: where they are without an identity, the folder is refused.

    Returns:
        Whether the folder belonged to this run before.

    Raises:
        OtherRunError: the folder holds another run; the message lists what differs. Or its note cannot be read.
    """
    folder = Path(folder)
    if folder.exists() and not folder.is_dir():
        raise OtherRunError(f"{folder} is a file; expected a folder for the run: choose another out=")
    path, now = folder / name, json.loads(json.dumps(identity))
    if path.is_file():
        lines = [line for line in differences(_read(path), now) if not _is_free(line, free)]
        if lines:
            raise OtherRunError(
                f"{folder} holds another run; it differs in\n"
                + "\n".join(lines)
                + "\nChoose another out=, or set these as they were to go on with that run."
            )
        return True
    if found := sorted({each.name for pattern in traces for each in folder.glob(pattern)}):
        raise OtherRunError(
            f"{folder} holds {', '.join(found[:3])} and no {name} that says what of: choose another out=, or empty it"
        )
    folder.mkdir(parents=True, exist_ok=True)
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(now, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    return False


def _read(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise OtherRunError(f"{path} cannot be read ({error}); choose another out=, or empty the folder") from error
    if not isinstance(content, dict):
        raise OtherRunError(f"{path} holds no JSON object; choose another out=, or empty the folder")
    return content


def _is_free(line: str, free: Collection[str]) -> bool:
    key = line.strip().partition(":")[0]
    return any(key == each or key.startswith(f"{each}.") for each in free)
