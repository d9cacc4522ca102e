"""``specpolicy export``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from hydra.utils import instantiate

from specpolicy.commands.common import recipe_of
from specpolicy.config import ConfigError, compose, to_container


def export(arguments: Sequence[str]) -> None:
    """Write one round of a sampler as an ONNX graph, for controllers without Python: specpolicy export PATH out=FOLDER.

    Args:
        arguments: ``name=value``, and the checkpoint alone or as ``checkpoint=``.

    Raises:
        ConfigError: no checkpoint or no folder, or a folder that holds something else.
        ExportError: this policy or sampler has no such graph.
    """
    paths = [each for each in arguments if "=" not in each or Path(each).exists()]
    overrides = [each for each in arguments if each not in paths]
    cfg = compose("export", overrides + [f'checkpoint="{path}"' for path in paths[:1]])
    given = to_container(cfg)
    if len(paths) > 1 or "???" in (given.get("checkpoint"), given.get("out")):
        raise ConfigError("give one checkpoint and a folder: specpolicy export PATH sampler=recycled20 out=FOLDER")

    from specpolicy.interop.loading import load_policy
    from specpolicy.interop.onnx_round import MANIFEST, ROUND, export_round

    out = Path(cfg.out)
    if out.exists() and (not out.is_dir() or {each.name for each in out.iterdir()} - {ROUND, MANIFEST}):
        raise ConfigError(f"out={out} exists and holds other files; choose a new folder")
    policy = load_policy(Path(cfg.checkpoint))
    export_round(policy, instantiate(recipe_of(cfg))(policy), out)
    print(f"{ROUND} and {MANIFEST} in {out}")
