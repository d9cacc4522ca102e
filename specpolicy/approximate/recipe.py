"""From a policy and a smaller one to ASDSV, for ``configs/sampler``."""

from __future__ import annotations

from pathlib import Path

import torch

from specpolicy.policies import DiffusionPolicy
from specpolicy.recipes import sequential

from .asdsv import AsdsvSampler, Stages
from .threshold import ThresholdVerifier


def asdsv(
    policy: DiffusionPolicy, num_inference_steps: int, delta: float, draft: str | Path | None = None
) -> AsdsvSampler:
    """ASDSV with a smaller policy as the draft network, in the published stages. Approximate.

    Args:
        policy: the target.
        num_inference_steps: K of the DDPM chain.
        delta: largest mean absolute difference of the networks' predictions at which a draft is kept; infinity never
            asks the target after the first stage.
        draft: checkpoint of the smaller policy; None for that of the target with ``_draft`` after its name.

    Raises:
        FileNotFoundError: there is no such checkpoint.
        ValueError: it looks at other observations, scales them otherwise, or predicts something else; or the target is
            of no checkpoint and ``draft`` is None.
    """
    if draft is None:
        if policy.folder is None:
            raise ValueError("the policy was not loaded from a checkpoint, so that it has no draft beside it: name one")
        draft = policy.folder.with_name(policy.folder.name + "_draft")
    if not Path(draft).is_dir():
        raise FileNotFoundError(
            f"no draft network in {draft}; distil one: specpolicy train policy=mlp policy.network.width=192 "
            f"teacher={policy.folder} out={draft}"
        )
    smaller = DiffusionPolicy.load(draft, policy.device)
    _check(policy, smaller)
    return AsdsvSampler(sequential(policy, num_inference_steps).process, smaller, ThresholdVerifier(delta), Stages())


def _check(policy: DiffusionPolicy, draft: DiffusionPolicy) -> None:
    policy.config.check_interchangeable(draft.config, "draft network")
    for name in ("observation_normalizer", "action_normalizer"):
        mine, others = (getattr(each, name).state_dict() for each in (policy, draft))
        if any(not torch.equal(mine[key], others[key]) for key in mine):
            raise ValueError(f"{name}: the draft network scales otherwise than the policy; distil it from this policy")
