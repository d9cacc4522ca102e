"""Let LeRobot's own commands sample diffusion policies speculatively, without a change to their command lines.

``lerobot-eval``, ``lerobot-record`` and the others import every installed distribution whose name begins with
``lerobot_policy_``. ``examples/lerobot_plugin`` is one that calls :func:`install`. From then on a diffusion policy is
accelerated at its first inference, when its scheduler, device and number of steps are known.

Environment variables:
    ``SPECPOLICY_SAMPLER``: ``auto`` (default), the name of a sampler that needs no calibration, or ``off``.
    ``SPECPOLICY_CHAIN``: ``ddpm`` samples the DDPM chain of a policy that plays deterministic DDIM steps.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from functools import wraps
from importlib import import_module
from typing import Any
from weakref import WeakSet

from specpolicy.interop.in_place import PolicyAcceleration, UnsupportedPolicy, accelerate_policy

MODELING = "lerobot.policies.diffusion.modeling_diffusion"
SAMPLER, CHAIN = "SPECPOLICY_SAMPLER", "SPECPOLICY_CHAIN"


def install(environment: Mapping[str, str] | None = None) -> bool:
    """Accelerate every diffusion policy of LeRobot in this process, at its first inference.

    A policy that cannot be sampled speculatively, such as one with a deterministic scheduler, is left as it is. Either
    way one line on standard error says what happened.

    Args:
        environment: where the two variables are looked up; ``os.environ`` by default.

    Returns:
        Whether it is on: false if ``SPECPOLICY_SAMPLER`` is ``off``, ``0`` or ``none``.

    Raises:
        ImportError: LeRobot is not installed, or has no diffusion policy where it is looked for.
    """
    settings = os.environ if environment is None else environment
    sampler, chain = settings.get(SAMPLER, "auto").strip() or "auto", settings.get(CHAIN, "").strip() or None
    if sampler.lower() in ("off", "0", "none"):
        return False
    try:
        model = import_module(MODELING).DiffusionModel
    except (ImportError, AttributeError) as error:
        raise ImportError(
            f"LeRobot's diffusion policy is not at {MODELING} ({error}); expected LeRobot 0.4 to 0.6 beside "
            'specpolicy: pip install "lerobot[diffusion]"'
        ) from error
    if getattr(model.conditional_sample, "_specpolicy", False):
        return True
    model.conditional_sample = _accelerated_at_first_call(model.conditional_sample, sampler, chain)
    return True


def uninstall() -> None:
    """Undo :func:`install` for policies that have not been asked yet; those that have keep their sampler."""
    model = import_module(MODELING).DiffusionModel
    model.conditional_sample = getattr(model.conditional_sample, "__wrapped__", model.conditional_sample)


def _accelerated_at_first_call(original: Any, sampler: str, chain: str | None) -> Any:
    refused: WeakSet[Any] = WeakSet()

    @wraps(original)
    def conditional_sample(model: Any, *arguments: Any, **named: Any) -> Any:
        if model in refused:
            return original(model, *arguments, **named)
        try:
            fast = accelerate_policy(model, sampler, chain=chain)
        except UnsupportedPolicy as error:
            if chain is not None or "DDIM" not in str(error):
                raise  # asked for something that cannot be: not to be passed over
            refused.add(model)
            _say(f"left as it is: {error} ({CHAIN}=ddpm does so here)")
            return original(model, *arguments, **named)
        answer = model.conditional_sample(*arguments, **named)  # now the accelerated one, an attribute of this model
        _say(_summary(fast))
        return answer

    conditional_sample._specpolicy = True  # type: ignore[attr-defined]
    return conditional_sample


def _summary(fast: PolicyAcceleration) -> str:
    same = "same distribution" if fast.exact else "approximate: NOT the policy's own distribution"
    notes = "".join(f"; {note}" for note in fast.notes)
    return (
        f"LeRobot diffusion policy accelerated ({same}): {fast.account.evaluations_per_chunk:.1f} network evaluations "
        f"in its first chunk, {fast.account.steps} without{notes}; {SAMPLER}=off turns it off"
    )


def _say(line: str) -> None:
    print(f"specpolicy: {line}", file=sys.stderr, flush=True)
