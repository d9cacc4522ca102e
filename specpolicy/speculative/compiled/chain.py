"""Sequential sampling in static shapes: the baselines, treated as well as the rounds are."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ..denoiser import Cond, Denoiser, DenoiserError, check_cond, state_dtype
from ..process import ReverseProcess
from ..randomness import RandomSource
from ..result import SampleResult
from ..sampler import Generators
from .filling import check_sizes, filled, padded
from .runners import Backend, Function, Runner, compiled_function, make_runner


class _Walk(NamedTuple):
    x: Float[Tensor, "b ..."]
    k: Int[Tensor, " 1"]
    finite: Bool[Tensor, " 1"]


class CompiledChain:
    """A chain sampled step by step, with compiled steps on a CPU and the whole chain as one CUDA graph.

    Args:
        process: the chain; without noise it is deterministic DDIM (:meth:`ReverseProcess.deterministic`).
        exact: whether this is the law that the network was trained for; few-step DDIM is approximate.
        backend: see :data:`Backend`. None: ``graph+inductor`` for noise on CUDA, ``inductor`` elsewhere.
        batches: batch sizes to prepare, as for :class:`CompiledSampler`.

    Raises:
        ValueError: batches that do not rise, or an unknown backend.
    """

    def __init__(
        self, process: ReverseProcess, exact: bool, backend: Backend | None = None, batches: Sequence[int] | None = None
    ) -> None:
        self.process, self.exact, self.backend = process, exact, backend
        self.batches = check_sizes(batches)
        self._prepared: dict[tuple[int, torch.device, torch.dtype], tuple[_Steps, Runner[_Walk]]] = {}
        if backend is not None:
            make_runner(backend)

    def __repr__(self) -> str:
        law = "exact" if self.exact else "approximate"
        return f"CompiledChain(K={self.process.num_steps}, {law}, backend={self.backend!r})"

    @torch.no_grad()
    def __call__(
        self, denoiser: Denoiser, noise: Tensor, cond: Cond = None, generator: Generators = None, record: bool = False
    ) -> SampleResult:
        """Sample one chain for each row of ``noise``; arguments and errors as in :class:`SequentialSampler`.

        Raises:
            ValueError: also for ``record``: compiled chains keep no trajectory.
        """
        if record:
            raise ValueError("a compiled chain keeps no trajectory: record with SequentialSampler")
        check_cond(cond, len(noise))
        chains, dtype, event, count = len(noise), state_dtype(noise), noise.shape[1:], self.process.num_steps
        random = RandomSource(generator, chains, noise.device, dtype)
        noise, cond = filled(noise, cond, self.batches)
        steps, runner = self._prepare(denoiser, noise)
        noisy = (self.process.sigma > 0).tolist()
        zero = torch.zeros(noise.shape, dtype=dtype, device=noise.device)
        kicks = [padded(random.noise(event), len(noise)) if each else zero for each in noisy]
        start = torch.zeros(1, dtype=torch.long, device=noise.device)
        runner.start(_Walk(noise.to(dtype, copy=True), start, torch.ones_like(start, dtype=torch.bool)), cond)
        if noise.device.type == "cuda":
            walk = runner.apply(steps.all, torch.stack(kicks))
        else:
            for kick in kicks:
                walk = runner.apply(steps.one, kick)
        if not bool(walk.finite):
            raise DenoiserError("denoiser returned NaN or infinity; check its weights, inputs and dtype")
        passes = torch.full((chains,), count, dtype=torch.long)
        return SampleResult(walk.x[:chains].to(noise.dtype, copy=True), passes, passes.clone())

    def warm_up(self, denoiser: Denoiser, noise: Tensor, cond: Cond = None) -> None:
        """Compile or capture for inputs like these."""
        self(denoiser, noise, cond, torch.Generator().manual_seed(0))

    def _prepare(self, denoiser: Denoiser, noise: Tensor) -> tuple[_Steps, Runner[_Walk]]:
        key = (id(denoiser), noise.device, noise.dtype)
        if key not in self._prepared:
            dtype = state_dtype(noise)
            cuda = noise.device.type == "cuda"
            backend: Backend = self.backend or ("graph+inductor" if cuda else "inductor")
            steps = _Steps(self.process.to(noise.device, dtype), denoiser, noise.dtype, backend.endswith("inductor"))
            # Steps are compiled one by one: a compiler would take the whole chain for one long program.
            self._prepared[key] = (steps, make_runner("graph" if backend.startswith("graph") else "plain"))
        return self._prepared[key]


class _Steps:
    """One step, and all of them."""

    def __init__(self, process: ReverseProcess, denoiser: Denoiser, dtype: torch.dtype, compiled: bool) -> None:
        self.process, self.denoiser, self.dtype = process, denoiser, dtype
        self.one: Function[_Walk] = compiled_function(self._one) if compiled else self._one

    def _one(self, walk: _Walk, kick: Tensor, cond: Any) -> _Walk:
        k = walk.k.expand(len(walk.x))
        output = self.denoiser(walk.x.to(self.dtype), self.process.timesteps[k], cond)
        x0 = self.process.x0(walk.x, output.to(walk.x.dtype), k)
        return _Walk(self.process.step(walk.x, x0, k, kick), walk.k + 1, walk.finite & output.isfinite().all())

    def all(self, walk: _Walk, kicks: Tensor, cond: Any) -> _Walk:
        for kick in kicks.unbind():
            walk = self.one(walk, kick, cond)
        return walk
