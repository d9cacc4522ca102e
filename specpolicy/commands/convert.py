"""``specpolicy convert``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from specpolicy.config import ConfigError, compose


def convert(overrides: Sequence[str]) -> None:
    """Bring a policy's checkpoint, or a task's published recordings, into this library's formats.

    Args:
        overrides: ``name=value``, in Hydra's grammar.
    """
    source, out, rest = _source_and_out(overrides)
    if source is not None and _is_checkpoint(source):
        if out is None or rest:
            raise ConfigError(f"{source} is a policy: write specpolicy convert {source} out=FOLDER, and nothing else")
        _convert_policy(source, out)
        return
    given = [f"source={_quoted(source)}"] if source is not None else []
    cfg = compose("convert", [*given, *([f"out={_quoted(out)}"] if out is not None else []), *rest])
    if cfg.task.name not in ("pusht", "pusht_image"):
        raise ConfigError(f"no converter for task {cfg.task.name!r}; there are those for 'pusht' and 'pusht_image'")
    from specpolicy.datasets.pusht import convert_pusht

    episodes = convert_pusht(cfg.source, cfg.out, images=cfg.task.name == "pusht_image")
    print(f"{episodes} demonstrations in {cfg.out}")


def _source_and_out(overrides: Sequence[str]) -> tuple[Path | None, Path | None, list[str]]:
    """Take the source, with or without its name, and ``out`` out of the overrides. Paths may contain equal signs."""
    source: Path | None = None
    out: Path | None = None
    rest: list[str] = []
    for override in overrides:
        name, separator, value = override.partition("=")
        if name in ("source", "out") and separator:
            source, out = (Path(value), out) if name == "source" else (source, Path(value))
        elif Path(override).exists() or not separator:
            source = Path(override)
        else:
            rest.append(override)
    return source, out, rest


def _is_checkpoint(source: Path) -> bool:
    """Tell policies from recordings: zarr folders and HDF5 files."""
    if source.is_dir():
        return not any((source / name).exists() for name in (".zgroup", "zarr.json", "data", "meta"))
    if not source.is_file() or source.suffix == ".zip":  # an archive of recordings has to be unpacked first
        return source.suffix in (".pth", ".ckpt", ".pt")
    with open(source, "rb") as file:
        return not file.read(8).startswith(b"\x89HDF")


def _convert_policy(source: Path, out: Path) -> None:
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ConfigError(f"out={out} exists and is not empty; choose a new folder")
    from specpolicy.interop.loading import load_policy

    policy = load_policy(source)
    policy.save_pretrained(out)
    print(policy.report())
    print(f"written to {out}")


def _quoted(path: Path) -> str:
    return "'" + str(path).replace("\\", "\\\\").replace("'", "\\'") + "'"
