"""``specpolicy certify``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from hydra.utils import instantiate

from specpolicy.commands.common import histories_for, recipe_of
from specpolicy.config import ConfigError, compose, to_container


def certify(arguments: Sequence[str]) -> None:
    """Test a sampler's exactness on a checkpoint, and time it beside its rivals.

    Args:
        arguments: ``name=value``, and the checkpoint alone or as ``checkpoint=``.

    Raises:
        CertificateFailed: the sampler is not exact on this policy.
        ConfigError: no checkpoint, or more than one.
    """
    paths = [each for each in arguments if "=" not in each or Path(each).exists()]
    overrides = [each for each in arguments if each not in paths]
    if len(paths) > 1:
        raise ConfigError(f"give one checkpoint; these are {len(paths)}: {', '.join(paths)}")
    cfg = compose("certify", overrides + [f'checkpoint="{path}"' for path in paths])
    if not isinstance(to_container(cfg).get("checkpoint"), str) or to_container(cfg)["checkpoint"] == "???":
        raise ConfigError("give a checkpoint: specpolicy certify PATH dataset=FILE")

    import numpy as np
    import torch
    from rich.console import Console

    from specpolicy.evaluation.certificate import CertificateFailed, certify
    from specpolicy.interop.loading import load_policy
    from specpolicy.utils.provenance import software_and_machine

    if cfg.threads:
        torch.set_num_threads(cfg.threads)
    policy = load_policy(Path(cfg.checkpoint), cfg.device)
    name = next((each.partition("=")[2] for each in overrides if each.startswith("sampler=")), "auto")
    options = [each for each in overrides if each.startswith(("compile=", "precision="))]
    samplers = {
        each: instantiate(recipe_of(compose("certify", [*options, f"sampler={each}", "checkpoint=none"])))(policy)
        for each in ("ddpm", "ddim10", "ddim5")
    }
    samplers = {"ddpm": samplers.pop("ddpm"), name: instantiate(recipe_of(cfg))(policy), **samplers}
    histories = histories_for(policy, cfg.dataset, cfg.observations)
    count = min(len(histories.observations), max(cfg.chunks, cfg.calls))
    which = np.random.default_rng(cfg.seed).choice(len(histories.observations), count, replace=False)
    certificate = certify(
        policy,
        samplers,
        name,
        histories.named(policy, which),
        checkpoint=str(cfg.checkpoint),
        chunks=cfg.chunks,
        calls=cfg.calls,
        seed=cfg.seed,
        provenance={
            "observations": histories.origin,
            **software_and_machine(policy.device),
            "compile": cfg.compile,
            "precision": cfg.precision,
        },
    )
    out = Path(cfg.out or f"runs/certificate-{Path(cfg.checkpoint).resolve().stem}-{name}.json")
    certificate.write(out)
    certificate.show(Console())
    print(f"certificate in {out}")
    if not certificate.passed:
        raise CertificateFailed(certificate.verdict)
