"""``specpolicy serve``."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra.utils import instantiate

from specpolicy.config import ConfigError, compose, to_container


def serve(overrides: Sequence[str]) -> None:
    """Answer robots over a websocket with a policy's actions: specpolicy serve checkpoint=checkpoints/square.

    Args:
        overrides: ``name=value``, in Hydra's grammar.
    """
    from specpolicy.serving.auth import TOKEN_VARIABLE, find_token, listening_addresses, local
    from specpolicy.serving.server import ServerSettings

    if any(override.lstrip("+").startswith("token=") for override in overrides):
        raise ConfigError(
            "a token on the command line can be read by every user of this machine; put it into the environment "
            f"variable {TOKEN_VARIABLE} or into a file and token_file=<file>"
        )
    cfg: dict[str, Any] = to_container(compose("serve", overrides))
    checkpoint, device, threads, recipe, token_file, backend, sizes, precision, continuous = (
        cfg.pop(name)
        for name in (
            *("checkpoint", "device", "threads", "sampler", "token_file", "compile", "batches", "precision"),
            "continuous",
        )
    )
    if precision is not None and backend != "openvino":
        raise ConfigError(f"precision={precision} is for compile=openvino, and compile={backend} here")
    settings = ServerSettings(**cfg)
    if sizes is not None and (not sizes or sizes[-1] != settings.max_batch):
        raise ConfigError(
            f"batches={sizes} and max_batch={settings.max_batch}: the largest batch must be prepared, too, or robots "
            "wait for a compiler; end the list with max_batch"
        )
    token = find_token(token_file)
    addresses = listening_addresses(settings.host, token)  # before the policy is loaded, which takes longer
    if settings.tls_cert is None and not local(addresses):
        logging.getLogger(__name__).warning("without tls_cert and tls_key the token travels in clear")

    import torch

    from specpolicy import samplers
    from specpolicy.interop.loading import load_policy
    from specpolicy.serving.batching import BatchedPolicy
    from specpolicy.serving.server import PolicyServer, run_until_stopped
    from specpolicy.speculative.compiled.backends import batch_buckets

    if threads:
        torch.set_num_threads(threads)
    policy = load_policy(Path(checkpoint), device)
    make = instantiate(recipe)
    sizes = sizes or batch_buckets(settings.max_batch)
    made = (
        make(policy)
        if backend is None
        else samplers.compiled(policy, make, backend, sizes, predrafts=True, precision=precision)
    )
    engine = BatchedPolicy(policy, made)
    rounds = None
    if continuous:
        from specpolicy.serving.continuous import ContinuousBatch, why_not_continuous

        if reason := why_not_continuous(engine):
            logging.getLogger(__name__).warning("continuous=true has no effect: %s", reason)
        else:
            rounds = ContinuousBatch(engine)
    server = PolicyServer(engine, settings, token, rounds)
    engine.warm_up([1, 1, settings.max_batch])

    def started(url: str) -> None:
        about = engine.describe()
        exact = "exact" if about["exact"] else "approximate"
        exact += f", {about['precision']} network" if about.get("precision") else ""
        print(f"serving {checkpoint} ({policy.config.task}, {exact}) at {url}; Ctrl-C stops it", flush=True)

    run_until_stopped(server, started)
