"""From a policy to a sampler: the recipes that ``configs/sampler`` names.

Each takes the policy, so that one configuration serves every checkpoint. Most need no more of it than the
``DDPMScheduler`` that it was trained with, and take that as well.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from hydra.utils import instantiate

from specpolicy.calibration.store import calibration_path, load_calibration
from specpolicy.calibration.x0_variance import load_x0_variance
from specpolicy.config import ConfigError, available, compose
from specpolicy.policies.diffusion_policy import DiffusionPolicy
from specpolicy.policies.prefix import PrefixGuess
from specpolicy.speculative.compiled.openvino_network import Precision
from specpolicy.speculative.compiled.runtime import RuntimeChain
from specpolicy.speculative.compiled.sampler import CompiledChain, CompiledSampler, CompositeSampler, compile_sampler
from specpolicy.speculative.drafters.base import Drafter
from specpolicy.speculative.drafters.linear import LinearDrafter, X0Jacobian
from specpolicy.speculative.drafters.recycling import RecyclingDrafter
from specpolicy.speculative.initial_guess import X0Guess, ZeroGuess
from specpolicy.speculative.inputs import kind_of
from specpolicy.speculative.process import ReverseProcess
from specpolicy.speculative.sampler import SequentialSampler, SpeculativeSampler
from specpolicy.speculative.scheduler_sampler import SchedulerSampler
from specpolicy.speculative.verifiers import ReflectionVerifier, Verifier
from specpolicy.speculative.window import Window
from specpolicy.tuning.automatic import AutoWindow, automatic_windows
from specpolicy.utils.checks import check_choice, check_flag, check_number
from specpolicy.utils.diffusers_schedulers import DDIMScheduler, DDPMScheduler, scheduler_from_config
from specpolicy.utils.progress import progress_bar

Trained: TypeAlias = DiffusionPolicy | DDPMScheduler
"""A policy, or the scheduler that it was trained with."""

Recipe = Callable[[DiffusionPolicy], Any]
"""Makes a sampler for a policy."""


def make_process(policy: Trained, num_inference_steps: int, analytic: bool = False) -> ReverseProcess:
    """The DDPM chain of a policy in ``num_inference_steps`` steps.

    Args:
        policy: loaded from a checkpoint if noise is to be analytic.
        num_inference_steps: K.
        analytic: timesteps closer to each other towards the sample, and noise that makes up for long steps, see
            :class:`~specpolicy.calibration.X0Variance`: much closer to the distribution of the longest chain. False
            takes the scheduler's timesteps and noise.

    Raises:
        CalibrationError: the checkpoint does not know its x0_variance.
        ValueError: the policy is of no checkpoint.
    """
    if not check_flag("analytic", analytic):
        return ReverseProcess.from_scheduler(_scheduler(policy), num_inference_steps)
    return load_x0_variance(_loaded(policy)[0]).chain(_scheduler(policy), num_inference_steps)


def sequential(policy: Trained, num_inference_steps: int, analytic: bool = False) -> SequentialSampler:
    """A chain, see :func:`make_process`, with one network evaluation a step."""
    return SequentialSampler(make_process(policy, num_inference_steps, analytic))


def speculative(
    policy: Trained,
    num_inference_steps: int,
    drafter: Drafter,
    verifier: Verifier,
    window: Window | AutoWindow | str,
    analytic: bool = False,
) -> SpeculativeSampler:
    """The same chain in rounds; exactly its distribution if the verifier is exact.

    Args:
        policy: loaded from a checkpoint if its windows are asked for, or analytic noise.
        num_inference_steps: K.
        drafter: of the :class:`SpeculativeSampler`.
        verifier: of the :class:`SpeculativeSampler`.
        window: likewise; or ``"auto"``: those that ``specpolicy tune`` chose for this checkpoint and device, or else
            planned from how far drafts are accepted and from what rows cost here, which is measured in seconds and
            kept; an :class:`~specpolicy.tuning.AutoWindow` says for which backend.
        analytic: see :func:`make_process`.

    Raises:
        WindowsError: none were chosen for this sampler, and its acceptance is not known.
        ValueError: ``"auto"`` for a policy that is of no checkpoint, or no window.
    """
    process = make_process(policy, num_inference_steps, analytic)
    return _with_window(policy, partial(SpeculativeSampler, process, drafter, verifier), window)


def calibrated(
    policy: Trained,
    num_inference_steps: int,
    verifier: Verifier,
    window: Window | AutoWindow | str,
    initial_guess: X0Guess | str | None = "fitted",
    drafter: Callable[[X0Jacobian], Drafter] = LinearDrafter,
    analytic: bool = False,
) -> SpeculativeSampler:
    """The same chain with the Jacobian that ``specpolicy calibrate`` fitted to the policy's checkpoint.

    Args:
        policy: loaded from a checkpoint; a scheduler will not do.
        num_inference_steps: K, of chain and calibration.
        verifier: of the :class:`SpeculativeSampler`.
        window: likewise; or ``"auto"``, as for :func:`speculative`.
        initial_guess: what stands in for x̂0 before the first evaluation: ``"fitted"``, ``"zero"``, an object, or
            None for an evaluation at pure noise.
        drafter: made with the Jacobian; :class:`~specpolicy.RecyclingDrafter` wants a causal verifier.
        analytic: see :func:`make_process`.

    Raises:
        CalibrationError: the checkpoint has no calibration of its own for so many steps.
        WindowsError: ``"auto"``, no windows were chosen for this sampler, and its acceptance is not known.
        ValueError: the policy is of no checkpoint, or ``initial_guess`` is another word.
    """
    process = make_process(policy, num_inference_steps, analytic)
    calibration = load_calibration(_loaded(policy)[0], num_inference_steps, analytic)
    guess = initial_guess
    if isinstance(guess, str):
        guesses: dict[str, X0Guess] = {"fitted": calibration.initial_guess, "zero": ZeroGuess()}
        guess = guesses[check_choice("initial_guess", guess, ("fitted", "zero"))]
        if isinstance(policy, DiffusionPolicy) and policy.prefix is not None:
            guess = PrefixGuess(guess, policy.prefix)
    drafts = drafter(calibration.jacobian)
    return _with_window(
        policy,
        partial(SpeculativeSampler, process, drafts, verifier, initial_guess=guess),
        window,
    )


def default(
    policy: DiffusionPolicy, num_inference_steps: int | None = None, window: int | None = None
) -> SpeculativeSampler:
    """What this library takes if nothing is asked for: recycled drafts, with what a calibration knows if there is one.

    Args:
        policy: with or without a checkpoint.
        num_inference_steps: K; None for as many as the policy is played with.
        window: steps to draft a round; None for 24, and on CUDA, where rows cost little, for the whole chain.

    Raises:
        CalibrationError: the checkpoint's calibration is damaged or of other weights.
    """
    num_inference_steps = num_inference_steps or policy.num_inference_steps
    window = window or (num_inference_steps if policy.device.type == "cuda" else 24)
    verifier = ReflectionVerifier()
    if policy.folder is not None and calibration_path(policy.folder, num_inference_steps).is_file():
        return calibrated(policy, num_inference_steps, verifier, window, drafter=RecyclingDrafter)
    return speculative(policy, num_inference_steps, RecyclingDrafter(), verifier, window)


def ddim(policy: Trained, num_inference_steps: int, eta: float = 0.0) -> SchedulerSampler:
    """Few-step DDIM (Song et al. 2021). Approximate: not the distribution of the training chain."""
    few = scheduler_from_config(DDIMScheduler, _scheduler(policy).config)
    return SchedulerSampler(few, num_inference_steps, {"eta": check_number("eta", eta, least=0, most=1)})


def names() -> list[str]:
    """List the samplers that :func:`load` and ``sampler=`` on the command line know.

    Returns:
        Their names, sorted.
    """
    return available("sampler")


def load(name: str, policy: DiffusionPolicy, **settings: Any) -> Any:
    """Make a sampler by its name.

    Args:
        name: one of :func:`names`, such as ``"ddpm"``, ``"free_block"``, ``"recycled"`` or ``"ddim10"``.
        policy: that it is to sample; calibrated samplers look for its calibration beside its checkpoint.
        **settings: settings of that sampler to change, such as ``window=40``, ``num_inference_steps=50`` or
            ``verifier=ResidualVerifier()``; objects are taken as they are.

    Returns:
        The sampler; ``sampler.exact`` tells whether it has the distribution of its DDPM chain.

    Raises:
        ConfigError: the name or a setting is unknown.
        CalibrationError: the sampler needs a calibration that is not there.
    """
    recipe = instantiate(compose("serve", [f"sampler={name}"]).sampler)
    known = list(inspect.signature(recipe.func).parameters)[1:]  # the first is the policy
    if unknown := sorted(settings.keys() - set(known)):
        raise ConfigError(f"sampler {name!r} has no setting {unknown[0]!r}; it has {', '.join(known)}")
    plain = {name: value.item() if isinstance(value, np.generic) else value for name, value in settings.items()}
    return recipe(policy, **plain)


def compiled(
    policy: DiffusionPolicy,
    sampler: Recipe,
    backend: str | None = None,
    batches: Sequence[int] = (1,),
    predrafts: bool = False,
    precision: Precision | None = None,
) -> CompiledSampler | CompiledChain | RuntimeChain | CompositeSampler:
    """Any of these samplers, compiled, captured or on OpenVINO, ready for the batch sizes that will come.

    Args:
        policy: its network is compiled with the steps.
        sampler: the recipe of the sampler.
        backend: see :data:`specpolicy.speculative.compiled.Backend`; ``"auto"`` or None chooses by device.
        batches: numbers of observations to prepare for now, rising; others are filled up to the least that holds them.
        predrafts: prepare for pre-drafts, too, where the sampler can make them.
        precision: of OpenVINO's network, see :func:`~specpolicy.compile_sampler`.

    Raises:
        ConversionError: OpenVINO cannot take over the policy's network.
        ValueError: the sampler has no compiled form, the backend is not to be had here, or the sizes do not rise.
    """
    named: Any = None if backend == "auto" else backend
    if isinstance(sampler, partial) and sampler.keywords.get("window") == "auto":
        windows = AutoWindow(backend or "auto", precision)
        sampler = partial(sampler, window=windows)
    made = compile_sampler(sampler(policy), named, batches, precision)
    with torch.inference_mode(), progress_bar("compiling", len(batches)) as bar:
        for size in batches:
            noise = torch.zeros(size, *policy.event_shape, device=policy.device)
            cond = torch.zeros(size, policy.cond_dim, device=policy.device)
            made.warm_up(policy, noise, cond)
            if predrafts and isinstance(made, CompiledSampler):
                made.warm_up(policy, noise, cond, record=True)
            bar.advance()
    return made


def _with_window(
    policy: Trained, make: Callable[..., SpeculativeSampler], window: Window | AutoWindow | str
) -> SpeculativeSampler:
    if isinstance(window, str):
        if window != "auto":
            raise ValueError(f"window={window!r}; give a number of steps, one for each step, or auto")
        window = AutoWindow()
    if not isinstance(window, AutoWindow):
        return make(window=window)
    checkpoint, _ = _loaded(policy)
    assert isinstance(policy, DiffusionPolicy)  # only those are loaded; for the type checker
    return make(window=automatic_windows(policy, checkpoint, make, window))


def _scheduler(policy: Trained) -> DDPMScheduler:
    if not isinstance(policy, DiffusionPolicy) and not hasattr(policy, "set_timesteps"):
        raise TypeError(
            f"policy is a {kind_of(policy)}; expected what specpolicy.load_policy(path) returns, or a scheduler"
        )
    return policy.training_scheduler if isinstance(policy, DiffusionPolicy) else policy


def _loaded(policy: Trained) -> tuple[Path, torch.device]:
    """The folder that a policy was loaded from, and where it computes."""
    if not isinstance(policy, DiffusionPolicy) or policy.folder is None:
        raise ValueError(
            "this sampler reads what was found out about a checkpoint: make it for a policy that was loaded from one "
            "(specpolicy.load_policy), not for a scheduler or a policy made in memory"
        )
    return policy.folder, policy.device
