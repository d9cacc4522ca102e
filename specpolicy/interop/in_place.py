"""Let live policies of LeRobot, robomimic and diffusion_policy sample speculatively, in place.

>>> import specpolicy
>>> with specpolicy.accelerate(policy) as fast:
...     action = policy.select_action(observation)
>>> print(fast.account)

One method is replaced, the one that runs the denoising loop. Queues, normalization, image encoders and the calls that
evaluation scripts make stay the package's own. Objects are recognized by their classes' names; no package is imported.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any

import torch
from torch import Tensor

from specpolicy.policies.protocols import ChunkReusingSampler
from specpolicy.speculative.denoiser import Cond, Denoiser
from specpolicy.speculative.drafters.recycling import RecyclingDrafter
from specpolicy.speculative.inputs import Generators
from specpolicy.speculative.process import ReverseProcess
from specpolicy.speculative.random_streams import ChainGenerators
from specpolicy.speculative.result import SampleResult
from specpolicy.speculative.sampler import SpeculativeSampler
from specpolicy.speculative.scheduler_sampler import SchedulerSampler
from specpolicy.speculative.verifiers import ReflectionVerifier
from specpolicy.utils.diffusers_schedulers import DDPMScheduler, scheduler_from_config

_WINDOW = 24
"""Steps drafted a round on a CPU, where rows cost time; on CUDA the whole chain is."""


class UnsupportedPolicy(ValueError):
    """An object, its scheduler or its arguments do not fit; the message says why and what can be done."""


@dataclass
class Account:
    """Network evaluations and acceptance since acceleration began, or since :meth:`clear`.

    Attributes:
        steps: of the chain: what the package itself would evaluate for each chunk.
        chunks: sampled chunks of actions.
        network_evaluations: that the chunks had to wait for in sequence, all together.
        rows: evaluated by the network, all together.
        proposed, accepted: drafted steps that were verified, and that were accepted.
        latest: account of the last call.
    """

    steps: int
    chunks: int = 0
    network_evaluations: int = 0
    rows: int = 0
    proposed: int = 0
    accepted: int = 0
    latest: SampleResult | None = field(default=None, repr=False)

    def add(self, result: SampleResult) -> None:
        """Take in one call's result."""
        self.latest = result
        self.chunks += len(result.passes)
        self.network_evaluations += int(result.passes.sum())
        self.rows += int(result.evaluations.sum())
        if result.proposed is not None and result.accepted is not None:
            self.proposed += int(result.proposed.clamp(min=0).sum())
            self.accepted += int(result.accepted.clamp(min=0).sum())

    def clear(self) -> None:
        """Begin anew."""
        self.chunks = self.network_evaluations = self.rows = self.proposed = self.accepted = 0
        self.latest = None

    @property
    def evaluations_per_chunk(self) -> float:
        """Mean sequential network evaluations of a chunk; NaN before the first."""
        return self.network_evaluations / self.chunks if self.chunks else float("nan")

    @property
    def acceptance(self) -> float:
        """Share of drafted steps that were accepted; NaN before the first."""
        return self.accepted / self.proposed if self.proposed else float("nan")

    def __str__(self) -> str:
        if not self.chunks:
            return f"no chunk yet; each would take {self.steps} network evaluations without acceleration"
        return (
            f"{self.chunks} chunks: {self.evaluations_per_chunk:.1f} network evaluations a chunk instead of "
            f"{self.steps}, {self.rows / self.chunks:.0f} rows, {self.acceptance:.0%} of drafted steps accepted"
        )


@dataclass(frozen=True)
class _Adapter:
    """How one package's object is accelerated.

    Attributes:
        package: its name.
        owner: the object whose method is replaced. method: name of that method.
        scheduler: that the loop steps. steps: inference steps of that loop.
        replacement: makes the method's stand-in from the function that samples.
    """

    package: str
    owner: Any
    method: str
    scheduler: Any
    steps: int
    replacement: Callable[[_Sample], Callable[..., Any]]


_Sample = Callable[[Denoiser, Tensor, Cond, Generators], Tensor]
"""Samples one chain for each row of noise, under conditions."""


class PolicyAcceleration:
    """A live policy that samples speculatively until :meth:`restore`, or to the end of a ``with`` block.

    Attributes:
        policy: the object itself, changed in place.
        sampler: in use.
        exact: whether actions have exactly the distribution of the package's own chain.
        account: evaluations and acceptance so far.
        notes: what is deliberately another chain than the package's, in words.
    """

    def __init__(self, policy: Any, adapter: _Adapter, sampler: Any, exact: bool, steps: int, notes: list[str]) -> None:
        if getattr(vars(adapter.owner).get(adapter.method), "_accelerated", False):
            raise UnsupportedPolicy("this policy has been accelerated already; restore() it first")
        self.policy, self.sampler, self.exact, self.notes = policy, sampler, exact, notes
        self.account = Account(steps)
        self._adapter = adapter
        self._own = adapter.method in vars(adapter.owner)
        self._before = vars(adapter.owner).get(adapter.method)
        stand_in = adapter.replacement(self._sample)
        stand_in._accelerated = True  # type: ignore[attr-defined]
        # past nn.Module's __setattr__, which keeps a register of its own
        object.__setattr__(adapter.owner, adapter.method, stand_in)
        self._stand_in = stand_in

    def _sample(self, denoiser: Denoiser, noise: Tensor, cond: Cond, generator: Generators) -> Tensor:
        result: SampleResult = self.sampler(denoiser, noise, cond=cond, generator=generator)
        self.account.add(result)
        return result.sample

    def restore(self) -> None:
        """Put the package's own method back; a second time changes nothing."""
        owner, method = self._adapter.owner, self._adapter.method
        if vars(owner).get(method) is not self._stand_in:
            return
        if self._own:
            object.__setattr__(owner, method, self._before)
        else:
            object.__delattr__(owner, method)

    def __enter__(self) -> PolicyAcceleration:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.restore()

    def __str__(self) -> str:
        return f"{self._adapter.package} {type(self.policy).__name__} with {self.sampler!r}; {self.account}"


def accelerate_policy(policy: Any, sampler: Any = "auto", *, chain: str | None = None) -> PolicyAcceleration:
    """Let a live policy sample speculatively; its actions keep exactly their distribution.

    Args:
        policy: LeRobot's ``DiffusionPolicy`` or the ``DiffusionModel`` in it; robomimic's ``DiffusionPolicyUNet`` or a
            ``RolloutPolicy`` with one; a diffusion policy of real-stanford/diffusion_policy. Changed in place until
            :meth:`PolicyAcceleration.restore`.
        sampler: ``"auto"``; the name of another that needs no calibration, such as ``"asd"`` or ``"free_block"``; a
            function that makes one from a :class:`~specpolicy.ReverseProcess`; or a sampler of this very chain.
        chain: None samples the package's own chain. ``"ddpm"``: the DDPM chain over all training timesteps, for a
            policy that plays a deterministic one: another distribution than the policy's own, that of the chain which
            the network was trained for.

    Raises:
        UnsupportedPolicy: it is another kind of object; its scheduler is deterministic and ``chain`` is None, or has no
            fixed Gaussian kernel; or the sampler is of another chain.
    """
    adapter = _adapter(policy)
    process, scheduler, notes = _process(adapter, chain)
    if isinstance(sampler, str):
        sampler = _named(sampler, process, scheduler, _device(adapter))
    made = _sampler(sampler, process)
    steps = adapter.steps
    exact = bool(getattr(made, "exact", False)) and (chain is None or process.num_steps == steps)
    return PolicyAcceleration(policy, adapter, made, exact, steps if chain is None else process.num_steps, notes)


def accelerate(thing: Any, sampler: Any = "auto", **options: Any) -> Any:
    """Let a live policy of another package, or a diffusers pipeline, sample speculatively, in place.

    Args:
        thing: see :func:`accelerate_policy` and :func:`~specpolicy.interop.diffusers.accelerate_pipeline`.
        sampler: as for a policy; a pipeline takes ``drafter``, ``verifier`` and ``window`` instead.
        **options: ``chain`` for a policy; the further arguments for a pipeline.

    Returns:
        A context manager with ``restore()`` and an ``account`` of evaluations and acceptance.

    Raises:
        UnsupportedPolicy, UnsupportedPipeline: it cannot be accelerated; the message says why and what can be done.
    """
    if "DiffusionPipeline" not in _names(thing):
        return accelerate_policy(thing, sampler, **options)
    from specpolicy.interop.diffusers.accelerate import accelerate_pipeline

    if sampler != "auto":
        raise UnsupportedPolicy("a pipeline makes its sampler itself: give drafter, verifier and window in its place")
    return accelerate_pipeline(thing, **options)


def _adapter(policy: Any) -> _Adapter:
    for recognize in _RECOGNIZERS:
        adapter = recognize(policy)
        if adapter is not None:
            return adapter
    raise UnsupportedPolicy(
        f"{type(policy).__module__}.{type(policy).__name__} is no policy that is known here; LeRobot's "
        "DiffusionPolicy, robomimic's DiffusionPolicyUNet or RolloutPolicy, and diffusion_policy's diffusion policies "
        "are. Policies of this library take a sampler in predict_action"
    )


def _names(thing: Any) -> set[str]:
    return {cls.__name__ for cls in type(thing).__mro__}


def _lerobot(policy: Any) -> _Adapter | None:
    """LeRobot: ``policy.diffusion.conditional_sample(batch_size, global_cond, generator, noise)``."""
    model: Any = policy if "DiffusionModel" in _names(policy) else getattr(policy, "diffusion", None)
    if not _names(policy) & {"DiffusionPolicy", "DiffusionModel"} or not hasattr(model, "conditional_sample"):
        return None
    config = model.config

    def replacement(sample: _Sample) -> Callable[..., Any]:
        def conditional_sample(
            batch_size: int,
            global_cond: Tensor | None = None,
            generator: torch.Generator | None = None,
            noise: Tensor | None = None,
        ) -> Tensor:
            like = next(model.parameters())
            if noise is None:
                shape = (config.horizon, config.action_feature.shape[0])
                noise = _noise(batch_size, shape, generator, like)

            def denoise(x: Tensor, timestep: Tensor, cond: Cond) -> Tensor:
                return model.unet(x, timestep.long(), global_cond=cond)

            return sample(denoise, noise, global_cond, generator)

        return conditional_sample

    steps = model.num_inference_steps or model.noise_scheduler.config.num_train_timesteps
    return _Adapter("LeRobot", model, "conditional_sample", model.noise_scheduler, steps, replacement)


_STANFORD = (
    "DiffusionUnetLowdimPolicy",
    "DiffusionTransformerLowdimPolicy",
    "DiffusionUnetImagePolicy",
    "DiffusionUnetHybridImagePolicy",
    "DiffusionTransformerHybridImagePolicy",
)


def _diffusion_policy(policy: Any) -> _Adapter | None:
    """diffusion_policy: ``policy.conditional_sample(condition_data, condition_mask, …)``."""
    if not _names(policy) & set(_STANFORD) or not hasattr(policy, "conditional_sample"):
        return None

    def replacement(sample: _Sample) -> Callable[..., Any]:
        def conditional_sample(
            condition_data: Tensor,
            condition_mask: Tensor,
            *conditions: Any,
            generator: torch.Generator | None = None,
            **given: Any,
        ) -> Tensor:
            transformer = any("Transformer" in name for name in _names(policy))
            names = ("cond",) if transformer else ("local_cond", "global_cond")
            told = {**dict(zip(names, conditions, strict=False)), **{n: given.pop(n) for n in names if n in given}}
            if given:
                raise UnsupportedPolicy(f"arguments {sorted(given)} of scheduler.step are not known here")
            fixed = {"data": condition_data, "mask": condition_mask} if bool(condition_mask.any()) else None

            def denoise(x: Tensor, timestep: Tensor, cond: Cond) -> Tensor:
                if cond["fixed"] is not None:
                    x = torch.where(cond["fixed"]["mask"], cond["fixed"]["data"], x)
                return policy.model(x, timestep, **cond["told"])

            noise = _noise(len(condition_data), condition_data.shape[1:], generator, condition_data)
            chunk = sample(denoise, noise, {"fixed": fixed, "told": told}, generator)
            return chunk if fixed is None else torch.where(condition_mask, condition_data, chunk)

        return conditional_sample

    steps = policy.num_inference_steps or policy.noise_scheduler.config.num_train_timesteps
    return _Adapter("diffusion_policy", policy, "conditional_sample", policy.noise_scheduler, steps, replacement)


def _robomimic(policy: Any) -> _Adapter | None:
    """robomimic: ``DiffusionPolicyUNet._get_action_trajectory(obs_dict, goal_dict)``, which slices as well."""
    algorithm = policy.policy if "RolloutPolicy" in _names(policy) and hasattr(policy, "policy") else policy
    if "DiffusionPolicyUNet" not in _names(algorithm) or not hasattr(algorithm, "_get_action_trajectory"):
        return None
    config = algorithm.algo_config
    kind = config.ddpm if config.ddpm.enabled else config.ddim

    def replacement(sample: _Sample) -> Callable[..., Any]:
        def _get_action_trajectory(obs_dict: Mapping[str, Tensor], goal_dict: Any = None) -> Tensor:
            horizon = config.horizon
            nets = algorithm.nets if algorithm.ema is None else algorithm.ema.averaged_model
            nets = nets["policy"]
            steps = {key: obs_dict[key] for key in algorithm.obs_shapes}
            for key, part in steps.items():  # frames are not stacked where the policy sees but one
                if part.ndim - 1 == len(algorithm.obs_shapes[key]):
                    steps[key] = part.unsqueeze(1)
            batch = len(next(iter(steps.values())))
            goals = None if not goal_dict else {key: goal.flatten(0, 1) for key, goal in goal_dict.items()}
            features = nets["obs_encoder"](obs={key: part.flatten(0, 1) for key, part in steps.items()}, goal=goals)

            def denoise(x: Tensor, timestep: Tensor, cond: Cond) -> Tensor:
                return nets["noise_pred_net"](sample=x, timestep=timestep, global_cond=cond)

            noise = _noise(batch, (horizon.prediction_horizon, algorithm.ac_dim), None, features)
            chunk = sample(denoise, noise, features.reshape(batch, -1), None)
            start = horizon.observation_horizon - 1
            return chunk[:, start : start + horizon.action_horizon]

        return _get_action_trajectory

    return _Adapter(
        "robomimic",
        algorithm,
        "_get_action_trajectory",
        algorithm.noise_scheduler,
        kind.num_inference_timesteps,
        replacement,
    )


_RECOGNIZERS: tuple[Callable[[Any], _Adapter | None], ...] = (_lerobot, _diffusion_policy, _robomimic)


def _noise(batch: int, shape: Any, generator: torch.Generator | None, like: Tensor) -> Tensor:
    return ChainGenerators(generator, batch, like.device, like.dtype).noise(tuple(shape))


def _device(adapter: _Adapter) -> torch.device:
    nets = getattr(adapter.owner, "nets", adapter.owner)
    return next(nets.parameters()).device


def _process(adapter: _Adapter, chain: str | None) -> tuple[ReverseProcess, DDPMScheduler, list[str]]:
    """The chain to sample, a scheduler of its betas by the diffusers that is installed, and notes about it."""
    if chain not in (None, "ddpm"):
        raise UnsupportedPolicy(f"chain={chain!r}; expected None for the policy's own, or 'ddpm'")
    names, config = _names(adapter.scheduler), dict(adapter.scheduler.config)
    train_steps = config.get("num_train_timesteps", 1000)
    if "DDPMScheduler" not in names and "DDIMScheduler" not in names:
        raise UnsupportedPolicy(
            f"the policy's scheduler is a {type(adapter.scheduler).__name__}; DDPMScheduler can be sampled exactly, "
            'and the DDPM chain of a DDIMScheduler with chain="ddpm"'
        )
    if "DDIMScheduler" in names and chain is None:
        raise UnsupportedPolicy(
            f"this policy plays {adapter.steps} DDIM steps, which are deterministic: no draft of a step can be exact. "
            f'accelerate(policy, chain="ddpm") runs the {train_steps}-step DDPM chain that the network was trained for '
            "(another distribution than DDIM's); specpolicy.approximate has samplers that trade exactness for speed"
        )
    known = scheduler_from_config(DDPMScheduler, {k: v for k, v in config.items() if not k.startswith("_")})
    steps = train_steps if chain == "ddpm" else adapter.steps
    notes = []
    if chain == "ddpm" and ("DDIMScheduler" in names or steps != adapter.steps):
        notes.append(f"samples the {steps}-step DDPM chain, not the policy's own {adapter.steps} steps")
    elif steps < train_steps and "clip_sample_range" not in dict(adapter.scheduler.config):
        notes.append(
            f"{steps} of {train_steps} steps by an old diffusers, whose posterior is wrong there; the corrected chain "
            "is sampled"
        )
    try:
        return ReverseProcess.from_scheduler(known, steps), known, notes
    except ValueError as error:
        raise UnsupportedPolicy(str(error)) from error


def _named(name: str, process: ReverseProcess, scheduler: DDPMScheduler, device: torch.device) -> Any:
    """Make a sampler by its name, for the chain of ``process``."""
    if name == "auto":
        window = process.num_steps if device.type == "cuda" else _WINDOW
        return SpeculativeSampler(process, RecyclingDrafter(), ReflectionVerifier(), window)
    from specpolicy.samplers import load

    try:
        made = load(name, scheduler)  # recipes without calibration need no more of a policy
        if getattr(made, "process", process).num_steps != process.num_steps:
            made = load(name, scheduler, num_inference_steps=process.num_steps)
    except Exception as error:  # an unknown name, or a recipe that wants a policy of a checkpoint
        reason = str(error.__cause__ or error).split("\n")[0]
        raise UnsupportedPolicy(f"sampler={name!r} cannot be made for a live policy: {reason}") from error
    return made


def _sampler(sampler: Any, process: ReverseProcess) -> Any:
    """Take a sampler of this chain, or make one from it."""
    if isinstance(sampler, ChunkReusingSampler):
        raise UnsupportedPolicy(
            f"{sampler!r} starts from the chunk before, which a live policy of another package does not hand on; load "
            "the checkpoint with specpolicy.load_policy, or take another sampler"
        )
    own = getattr(sampler, "process", None)
    if isinstance(own, ReverseProcess):
        same = own.num_steps == process.num_steps and all(
            torch.allclose(getattr(own, name).double(), getattr(process, name).double(), atol=1e-6)
            for name in ("a", "b", "sigma", "from_state", "from_output")
        )
        if not same:
            raise UnsupportedPolicy(
                f"the sampler is of another chain ({own.num_steps} steps) than the policy's ({process.num_steps}); "
                "give a function that makes it from the policy's ReverseProcess"
            )
        return sampler
    if isinstance(sampler, SchedulerSampler):
        return sampler
    if not callable(sampler):
        raise UnsupportedPolicy(f"sampler is a {type(sampler).__name__}; expected a name, a function or a sampler")
    return sampler(process)
