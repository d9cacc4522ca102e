"""Samplers whose network is evaluated by another runtime; their steps stay in PyTorch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from weakref import WeakValueDictionary

import torch

from specpolicy.speculative.compiled.openvino_network import OpenVINODenoiser, Precision, check_precision
from specpolicy.speculative.denoiser import Cond, Denoiser
from specpolicy.speculative.inputs import Generators
from specpolicy.speculative.predraft import PreDraft
from specpolicy.speculative.process import ReverseProcess
from specpolicy.speculative.result import SampleResult
from specpolicy.speculative.sampler import SpeculativeSampler
from specpolicy.speculative.sampler_call import Noise, check_call
from specpolicy.speculative.scheduler_sampler import SchedulerSampler
from specpolicy.speculative.single_chain import StepwiseChain, is_small
from specpolicy.utils.extras import require

# Samplers of one policy share its models. Whoever keeps a network keeps the denoiser, and with it the id.
_SHARED: WeakValueDictionary[tuple[int, str], OpenVINODenoiser] = WeakValueDictionary()


class RuntimeChain:
    """Any sampler with its network evaluated by OpenVINO: same call, same distribution.

    The first call for each batch size compiles a model and takes a second or so: make one before anything counts
    (:meth:`warm_up`).

    Args:
        sampler: whose steps are made.
        precision: of the network. With ``bf16`` the *reduced* network is the target: an exact sampler has exactly its
            distribution, which is near that of the network in float32, and not the same.

    Raises:
        ImportError: OpenVINO is not installed.
        ValueError: no such precision.

    Attributes:
        exact: of the sampler; whether the distribution is that of the DDPM chain of the network as it is computed.
    """

    backend = "openvino"

    def __init__(self, sampler: Any, precision: Precision = "f32") -> None:
        check_precision(precision)
        require("openvino", "openvino")
        self.sampler, self.precision, self.exact = sampler, precision, bool(sampler.exact)
        self._networks: dict[int, OpenVINODenoiser] = {}
        self._inner = with_array_steps(sampler)

    def __repr__(self) -> str:
        """Name the parts."""
        return f"{type(self).__name__}({self.sampler!r}, openvino, {self.precision})"

    @property
    def process(self) -> ReverseProcess:
        """The chain that is sampled; as in the sampler, only if it has one."""
        process: ReverseProcess = self.sampler.process
        return process

    def network(self, denoiser: Denoiser) -> OpenVINODenoiser:
        """Take the network over, once.

        Args:
            denoiser: as in a call; its weights are taken as they are now.

        Returns:
            What the sampler calls in its place: the target of what is exact.
        """
        if id(denoiser) not in self._networks:
            key = (id(denoiser), self.precision)
            self._networks[id(denoiser)] = _SHARED[key] = _SHARED.get(key) or OpenVINODenoiser(denoiser, self.precision)
        return self._networks[id(denoiser)]

    def __call__(
        self, denoiser: Denoiser, noise: Noise, cond: Cond = None, generator: Generators = None, record: bool = False
    ) -> SampleResult:
        """Sample one chain for each row of ``noise``; arguments and errors as in the sampler.

        Raises:
            ConversionError: OpenVINO cannot take the network over, which must be in float32 on the CPU.
        """
        return self._inner(self.network(denoiser), noise, cond=cond, generator=generator, record=record)

    def rows(self, batch: int) -> Sequence[int]:
        """Rows that an evaluation for so many chains may have."""
        return [batch]

    def warm_up(self, denoiser: Denoiser, noise: Noise, cond: Cond = None) -> None:
        """Compile the models for all evaluations that inputs like these can lead to.

        Args:
            denoiser: as in a call.
            noise: as in a call.
            cond: as in a call.

        Raises:
            ConversionError: OpenVINO cannot take the network over.
            ValueError: the inputs do not fit one another.
        """
        check_call(noise, cond, None)
        of = self.sampler.scheduler if isinstance(self.sampler, SchedulerSampler) else self.sampler.process
        timestep = torch.as_tensor(of.timesteps)[:1].expand(len(noise))
        with torch.inference_mode():
            self.network(denoiser).prepare(noise, timestep, cond, self.rows(len(noise)))


class ArrayStepDDIM:
    """Deterministic DDIM with its steps in NumPy where one chain is small: a fraction of what diffusers' step takes.

    Few-step rivals then pay as little around the network as our samplers do.

    Args:
        sampler: of a ``DDIMScheduler`` with η = 0; makes all other chains.
    """

    exact = False

    def __init__(self, sampler: SchedulerSampler) -> None:
        self._sampler, self._steps = sampler, StepwiseChain(ReverseProcess.deterministic(sampler.scheduler))

    def __call__(
        self, denoiser: Denoiser, noise: Noise, cond: Cond = None, generator: Generators = None, record: bool = False
    ) -> SampleResult:
        """Sample one chain for each row of ``noise``; see :class:`SchedulerSampler`."""
        random = check_call(noise, cond, generator)
        if record or not is_small(self._steps.process, noise):
            return self._sampler(denoiser, noise, cond, generator, record)
        return self._steps.sample(denoiser, noise, cond, random)


def with_array_steps(sampler: Any) -> Any:
    """Make DDIM's steps in NumPy, where they can be.

    Args:
        sampler: any.

    Returns:
        An :class:`ArrayStepDDIM` for a :class:`SchedulerSampler` of deterministic DDIM; all others as they are.
    """
    if not isinstance(sampler, SchedulerSampler) or sampler.step_arguments.get("eta", 0.0):
        return sampler
    if type(sampler.scheduler).__name__ != "DDIMScheduler" or set(sampler.step_arguments) - {"eta"}:
        return sampler
    return ArrayStepDDIM(sampler)


class RuntimeSampler(RuntimeChain):
    """The same for a :class:`SpeculativeSampler`, which pre-drafts."""

    sampler: SpeculativeSampler

    def __call__(
        self,
        denoiser: Denoiser,
        noise: Noise,
        cond: Cond = None,
        generator: Generators = None,
        record: bool = False,
        predraft: PreDraft | None = None,
    ) -> SampleResult:
        """Sample one chain for each row of ``noise``; see :class:`RuntimeChain` and :class:`SpeculativeSampler`."""
        return self.sampler(self.network(denoiser), noise, cond, generator, record, predraft)

    def predraft(self, denoiser: Denoiser, noise: Noise, cond: Cond = None, generator: Generators = None) -> PreDraft:
        """Sample whole chains ahead of time; see :meth:`SpeculativeSampler.predraft`."""
        return self.sampler.predraft(self.network(denoiser), noise, cond, generator)

    def rows(self, batch: int) -> Sequence[int]:
        """Anything up to all chains with their longest windows; and all steps of pre-drafts."""
        return [*range(1, batch * (1 + int(self.sampler.table.max())) + 1), batch * (1 + self.sampler.replayed)]
