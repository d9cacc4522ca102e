"""Samplers whose network is evaluated by another runtime; their steps stay in PyTorch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from weakref import WeakValueDictionary

import torch
from jaxtyping import Float
from torch import Tensor

from specpolicy.speculative.compiled.openvino_network import OpenVINODenoiser, Precision, check_precision
from specpolicy.speculative.denoiser import Cond, Denoiser
from specpolicy.speculative.inputs import Generators, check_cond, check_noise
from specpolicy.speculative.predraft import PreDraft
from specpolicy.speculative.process import ReverseProcess
from specpolicy.speculative.random_streams import ChainGenerators
from specpolicy.speculative.result import SampleResult
from specpolicy.speculative.sampler import SpeculativeSampler
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
        """Check and keep the settings; see the class."""
        check_precision(precision)
        require("openvino", "openvino")
        self.sampler, self.precision, self.exact = sampler, precision, bool(sampler.exact)
        self._networks: dict[int, OpenVINODenoiser] = {}
        self._steps = array_steps(sampler)

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
        self,
        denoiser: Denoiser,
        noise: Float[Tensor, "b ..."],
        cond: Cond = None,
        generator: Generators = None,
        record: bool = False,
    ) -> SampleResult:
        """Sample one chain for each row of ``noise``.

        Args:
            denoiser: the network, in float32 on the CPU.
            noise: as for the sampler.
            cond: as for the sampler.
            generator: as for the sampler.
            record: as for the sampler.

        Returns:
            What the sampler returns.

        Raises:
            ConversionError: OpenVINO cannot take the network over.
            ValueError: as the sampler.
        """
        network = self.network(denoiser)
        dtype = check_noise(noise)
        if self._steps is not None and not record and is_small(self._steps.process, noise):
            check_cond(cond, 1)
            random = ChainGenerators(generator, 1, noise.device, dtype)
            return self._steps.sample(network, noise, cond, random)
        return self.sampler(network, noise, cond=cond, generator=generator, record=record)

    def rows(self, batch: int) -> Sequence[int]:
        """Rows that an evaluation for so many chains may have."""
        return [batch]

    def warm_up(self, denoiser: Denoiser, noise: Float[Tensor, "b ..."], cond: Cond = None) -> None:
        """Compile the models for all evaluations that inputs like these can lead to.

        Args:
            denoiser: as in a call.
            noise: as in a call.
            cond: as in a call.

        Raises:
            ConversionError: OpenVINO cannot take the network over.
            ValueError: the inputs do not fit one another.
        """
        check_noise(noise)
        check_cond(cond, len(noise))
        of = self.sampler.scheduler if isinstance(self.sampler, SchedulerSampler) else self.sampler.process
        timestep = torch.as_tensor(of.timesteps)[:1].expand(len(noise))
        with torch.inference_mode():
            self.network(denoiser).prepare(noise, timestep, cond, self.rows(len(noise)))


def array_steps(sampler: Any) -> StepwiseChain | None:
    """Make DDIM's steps in NumPy, so that few-step rivals pay as little around the network as ours do for one chain.

    Args:
        sampler: any.

    Returns:
        The chain of a :class:`SchedulerSampler` of deterministic DDIM; None for all others.
    """
    if not isinstance(sampler, SchedulerSampler) or sampler.step_arguments.get("eta", 0.0):
        return None
    if type(sampler.scheduler).__name__ != "DDIMScheduler" or set(sampler.step_arguments) - {"eta"}:
        return None
    return StepwiseChain(ReverseProcess.deterministic(sampler.scheduler))


class RuntimeSampler(RuntimeChain):
    """The same for a :class:`SpeculativeSampler`, which pre-drafts."""

    sampler: SpeculativeSampler

    def __call__(
        self,
        denoiser: Denoiser,
        noise: Float[Tensor, "b ..."],
        cond: Cond = None,
        generator: Generators = None,
        record: bool = False,
        predraft: PreDraft | None = None,
    ) -> SampleResult:
        """Sample one chain for each row of ``noise``; see :class:`RuntimeChain` and :class:`SpeculativeSampler`."""
        return self.sampler(self.network(denoiser), noise, cond, generator, record, predraft)

    def predraft(
        self, denoiser: Denoiser, noise: Float[Tensor, "b ..."], cond: Cond = None, generator: Generators = None
    ) -> PreDraft:
        """Sample whole chains ahead of time; see :meth:`SpeculativeSampler.predraft`."""
        return self.sampler.predraft(self.network(denoiser), noise, cond, generator)

    def rows(self, batch: int) -> Sequence[int]:
        """Anything up to all chains with their longest windows; and all steps of pre-drafts."""
        return [*range(1, batch * (1 + int(self.sampler.table.max())) + 1), batch * (1 + self.sampler.replayed)]
