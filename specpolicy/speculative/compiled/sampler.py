"""Samplers with compiled or captured steps."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from specpolicy.speculative.compiled.backends import (
    Backend,
    Function,
    Runner,
    check_sizes,
    compiled_function,
    make_runner,
    pad_rows,
    pad_to_bucket,
)
from specpolicy.speculative.compiled.openvino_network import Precision
from specpolicy.speculative.compiled.round import CompiledState, FixedShapeRound
from specpolicy.speculative.compiled.runtime import RuntimeChain, RuntimeSampler
from specpolicy.speculative.denoiser import Cond, Denoiser, DenoiserError, prepared
from specpolicy.speculative.drafters.base import Draft
from specpolicy.speculative.inputs import Generators, state_dtype
from specpolicy.speculative.predraft import PreDraft
from specpolicy.speculative.process import ReverseProcess
from specpolicy.speculative.random_streams import ChainGenerators
from specpolicy.speculative.result import SampleResult
from specpolicy.speculative.round import RoundNoise
from specpolicy.speculative.sampler import SequentialSampler, SpeculativeSampler
from specpolicy.speculative.sampler_call import Noise, Sampler, check_call
from specpolicy.speculative.scheduler_sampler import SchedulerSampler
from specpolicy.speculative.window import AdaptiveWindow


class CompiledSampler:
    """A :class:`SpeculativeSampler` whose rounds are compiled or captured: same call, same distribution.

    On a CPU, and wherever ``widths`` has more than one entry, the host reads the chains' positions before each round
    and draws exactly the numbers that the sampler itself would draw: equal seeds give equal samples, up to the rounding
    of arithmetic in another order. With one width the rounds that the batch needs at least are queued without a look,
    from numbers for the full width.

    The first call for each shape compiles or captures and takes seconds to a minute: make one before anything counts
    (:meth:`warm_up`).

    Args:
        sampler: what to sample; its window must not be adaptive.
        backend: see :data:`Backend`. None: ``graph+inductor`` for noise on CUDA, ``inductor`` elsewhere.
        widths: window lengths to prepare, rising; a round takes the least that is enough. None: the longest window on
            CUDA, where rows cost little, and its half and quarter besides elsewhere.
        batches: batch sizes to prepare, rising. A batch takes the least that holds it, and is filled up with chains
            that count as finished; what is drawn for the others does not depend on it. None, and batches larger than
            the last: as they come, each size prepared when it is first seen.

    Raises:
        ValueError: an adaptive window, widths that do not hold the longest window, batches that do not rise, or an
            unknown backend.
    """

    def __init__(
        self,
        sampler: SpeculativeSampler,
        backend: Backend | None = None,
        widths: Sequence[int] | None = None,
        batches: Sequence[int] | None = None,
    ) -> None:
        if isinstance(sampler.window, AdaptiveWindow):
            raise ValueError(
                "an adaptive window changes its length from round to round, and compiled rounds have fixed shapes: "
                "take a number of steps, or one for each position"
            )
        self.sampler, self.process, self.exact = sampler, sampler.process, sampler.exact
        self._longest = max(1, int(sampler.table.max()))
        if widths is not None and (list(widths) != sorted(set(widths)) or widths[-1] < self._longest or widths[0] < 1):
            raise ValueError(f"widths={list(widths)}; expected rising lengths, the last at least {self._longest}")
        self.backend, self.widths = backend, None if widths is None else list(widths)
        self.batches = check_sizes(batches)
        # Replays are as long as they are; what they leave is cut to the windows that may draft with it.
        self._recycled = self._longest if sampler.drafter.recycles else None
        self._prepared: dict[tuple[int, torch.device, torch.dtype], tuple[FixedShapeRound, Runner[CompiledState]]] = {}
        if backend is not None:
            make_runner(backend)  # says now what is wrong with it

    def __repr__(self) -> str:
        """Name the parts."""
        return f"CompiledSampler({self.sampler!r}, backend={self.backend!r})"

    @torch.no_grad()
    def __call__(
        self,
        denoiser: Denoiser,
        noise: Noise,
        cond: Cond = None,
        generator: Generators = None,
        record: bool = False,
        predraft: PreDraft | None = None,
    ) -> SampleResult:
        """Sample one chain for each row of ``noise``; see :class:`PreDraftingSampler`."""
        random, chains = check_call(noise, cond, generator), len(noise)
        if predraft is not None:
            predraft.check(noise, self.process)
        noise, cond = pad_to_bucket(noise, prepared(denoiser, cond), self.batches)
        rounds, runner, widths = self.prepare(denoiser, noise, cond)
        runner.start(self._begin(noise, record, chains), cond)
        replays = predraft is not None and self.sampler.replayed > 0
        steps, table = self.process.num_steps, self.sampler.table.tolist()
        if predraft is not None and replays:
            state = runner.apply(rounds.replay, _replayed(predraft, self.sampler.replayed, random, len(noise)))
        else:
            state = runner.apply(rounds.begin, None)
        if len(widths) == 1:
            ahead = steps - (self.sampler.replayed + 1 if replays else 0)
            for _ in range(math.ceil(ahead / (widths[0] + 1))):
                state = runner.apply(rounds.advance, full_draws(random, widths[0], noise))
        while True:
            position = state.chains.k.tolist()
            active = [chain for chain, k in enumerate(position) if k < steps]
            if not active:
                break
            lengths = [table[position[chain]] for chain in active]
            width = next(width for width in widths if width >= max(lengths))
            draws = (
                full_draws(random, width, noise)
                if len(widths) == 1
                else _exact_draws(random, width, noise, active, lengths)
            )
            state = runner.apply(rounds.advance, draws)
        if not bool(state.finite):
            raise DenoiserError("denoiser returned NaN or infinity; check its weights, inputs and dtype")
        return state.result(noise.dtype, replays, chains)

    def predraft(self, denoiser: Denoiser, noise: Tensor, cond: Cond = None, generator: Generators = None) -> PreDraft:
        """Sample whole chains ahead of time; see :meth:`SpeculativeSampler.predraft`."""
        return PreDraft.of(self.process, self(denoiser, noise, cond, generator, record=True))

    def warm_up(self, denoiser: Denoiser, noise: Tensor, cond: Cond = None, record: bool = False) -> None:
        """Compile or capture every width for inputs like these; the random numbers are of no account.

        With ``record`` for what :meth:`predraft` needs, and for calls with a pre-draft.
        """
        noise, cond = pad_to_bucket(noise, prepared(denoiser, cond), self.batches)
        rounds, runner, widths = self.prepare(denoiser, noise, cond)
        dtype = state_dtype(noise)
        random = ChainGenerators(torch.Generator().manual_seed(0), len(noise), noise.device, dtype)
        with torch.no_grad():
            for width in widths:
                runner.start(self._begin(noise, record), cond)
                runner.apply(rounds.begin, None)
                runner.apply(rounds.advance, full_draws(random, width, noise))
        if record:
            draft = self.predraft(denoiser, noise, cond, torch.Generator().manual_seed(0))
            self(denoiser, noise, cond, torch.Generator().manual_seed(1), predraft=draft)

    def prepare(
        self, denoiser: Denoiser, noise: Tensor, cond: Cond = None
    ) -> tuple[FixedShapeRound, Runner[CompiledState], list[int]]:
        """The static rounds for this network, what runs them, and the widths that they come in."""
        dtype = state_dtype(noise)
        cuda = noise.device.type == "cuda"
        key = (id(denoiser), noise.device, noise.dtype)
        if key not in self._prepared:
            rounds = FixedShapeRound(
                self.sampler.round_for(noise.device, dtype),
                denoiser,  # kept, so that its id stays its own
                noise.dtype,
                self.sampler.table.to(noise.device),
            )
            backend: Backend = self.backend or ("graph+inductor" if cuda else "inductor")
            self._prepared[key] = (rounds, make_runner(backend))
            # Drafters and initial guesses move their tables to the device on first use: not in a compiled round.
            random = ChainGenerators(torch.Generator().manual_seed(0), len(noise), noise.device, dtype)
            state = rounds.begin(self._begin(noise, False), None, cond)
            rounds.advance(state, full_draws(random, 1, noise), cond)
        return *self._prepared[key], self.widths or _usual_widths(self._longest, cuda)

    def _begin(self, noise: Tensor, record: bool, chains: int | None = None) -> CompiledState:
        x, steps = noise.to(state_dtype(noise)), self.process.num_steps
        return CompiledState.start(x, steps, record, self._recycled, chains)


def _usual_widths(longest: int, cuda: bool) -> list[int]:
    return [longest] if cuda else sorted({max(1, longest // 4), max(1, longest // 2), longest})


def full_draws(random: ChainGenerators, width: int, noise: Tensor) -> RoundNoise:
    """The numbers of a round of ``width`` steps for all chains of ``random``, padded to the rows of ``noise``."""
    everyone, event, rows = range(random.batch), noise.shape[1:], len(noise)
    return RoundNoise(
        noise=pad_rows(random.window_noise([width] * random.batch, event, everyone), rows),
        uniform=pad_rows(random.window_uniform([width] * random.batch, everyone), rows),
        fresh=pad_rows(random.noise(event), rows),
    )


def _exact_draws(
    random: ChainGenerators, width: int, noise: Tensor, active: list[int], lengths: list[int]
) -> RoundNoise:
    """What the eager round draws, padded to ``width`` and to the rows of ``noise``."""
    event, batch = noise.shape[1:], len(noise)
    drawn = random.window_noise(lengths, event, active)
    uniform = random.window_uniform(lengths, active)
    fresh = random.noise(event, active)
    pad_rows = RoundNoise(
        noise=drawn.new_zeros((batch, width, *event)),
        uniform=uniform.new_zeros((batch, width + 1)),
        fresh=fresh.new_zeros((batch, *event)),
    )
    pad_rows.noise[active, : drawn.shape[1]] = drawn
    pad_rows.uniform[active, : uniform.shape[1] - 1] = uniform[:, :-1]
    pad_rows.uniform[active, -1] = uniform[:, -1]
    pad_rows.fresh[active] = fresh
    return pad_rows


def _replayed(predraft: PreDraft, steps: int, random: ChainGenerators, rows: int) -> tuple[Draft, RoundNoise]:
    def by_chain(values: Tensor) -> Tensor:
        return pad_rows(values.transpose(0, 1), rows)

    uniform = pad_rows(random.window_uniform([steps] * random.batch, range(random.batch)), rows)
    fresh = pad_rows(random.noise(predraft.start.shape[1:]), rows)
    draft = Draft(by_chain(predraft.states[: steps + 1]), by_chain(predraft.x0[:steps]))
    return draft, RoundNoise(by_chain(predraft.noise[:steps]), uniform, fresh)


class _Walk(NamedTuple):
    x: Float[Tensor, "b ..."]
    k: Int[Tensor, " 1"]
    finite: Bool[Tensor, " 1"]


class CompiledChain:
    """A chain sampled step by step, with compiled steps on a CPU and the whole chain as one CUDA graph.

    Args:
        process: the chain; without noise it is deterministic DDIM (:meth:`ReverseProcess.deterministic`).
        exact: whether this is the distribution that the network was trained for; few-step DDIM is approximate.
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
        """Name the parts."""
        kind = "exact" if self.exact else "approximate"
        return f"CompiledChain(K={self.process.num_steps}, {kind}, backend={self.backend!r})"

    @torch.no_grad()
    def __call__(
        self, denoiser: Denoiser, noise: Noise, cond: Cond = None, generator: Generators = None, record: bool = False
    ) -> SampleResult:
        """Sample one chain for each row of ``noise``; see :class:`Sampler`.

        Raises:
            ValueError: also for ``record``: compiled chains keep no trajectory.
        """
        if record:
            raise ValueError("a compiled chain keeps no trajectory: record with SequentialSampler")
        random = check_call(noise, cond, generator)
        chains, event, count, dtype = len(noise), noise.shape[1:], self.process.num_steps, random.dtype
        noise, cond = pad_to_bucket(noise, prepared(denoiser, cond), self.batches)
        steps, runner = self._prepare(denoiser, noise)
        noisy = (self.process.sigma > 0).tolist()
        zero = torch.zeros(noise.shape, dtype=dtype, device=noise.device)
        noises = [pad_rows(random.noise(event), len(noise)) if each else zero for each in noisy]
        start = torch.zeros(1, dtype=torch.long, device=noise.device)
        runner.start(_Walk(noise.to(dtype, copy=True), start, torch.ones_like(start, dtype=torch.bool)), cond)
        if noise.device.type == "cuda":
            walk = runner.apply(steps.all, torch.stack(noises))
        else:
            for noise_k in noises:
                walk = runner.apply(steps.one, noise_k)
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

    def _one(self, walk: _Walk, noise_k: Tensor, cond: Any) -> _Walk:
        k = walk.k.expand(len(walk.x))
        output = self.denoiser(walk.x.to(self.dtype), self.process.timesteps[k], cond)
        x0 = self.process.x0(walk.x, output.to(walk.x.dtype), k)
        return _Walk(self.process.step(walk.x, x0, k, noise_k), walk.k + 1, walk.finite & output.isfinite().all())

    def all(self, walk: _Walk, noises: Tensor, cond: Any) -> _Walk:
        for noise_k in noises.unbind():
            walk = self.one(walk, noise_k, cond)
        return walk


@runtime_checkable
class CompositeSampler(Sampler, Protocol):
    """A sampler made of others, each of which is compiled."""

    exact: bool

    def with_parts(self, change: Callable[[Any], Any]) -> CompositeSampler:
        """Make the same of other samplers."""
        ...

    def warm_up(self, denoiser: Denoiser, noise: Tensor, cond: Cond = None) -> None:
        """Compile or capture its parts, which are compiled ones, for inputs like these."""
        ...


def compile_sampler(
    sampler: Any,
    backend: Backend | None = None,
    batches: Sequence[int] | None = None,
    precision: Precision | None = None,
) -> CompiledSampler | CompiledChain | RuntimeChain | CompositeSampler:
    """The same sampler with compiled or captured steps, or with its network evaluated by OpenVINO.

    What is exact stays exact; with ``precision="bf16"`` for the network in bfloat16.

    Args:
        sampler: a :class:`SpeculativeSampler`, a :class:`SequentialSampler`, a :class:`SchedulerSampler`, or a
            :class:`CompositeSampler` of these. What is compiled as a whole must not have an adaptive window, and be of
            ``DDIMScheduler`` with η = 0 if of a scheduler.
        backend: see :data:`Backend`; None chooses by device between compiled and captured steps.
        batches: batch sizes to prepare, rising; a batch is filled up to the least that holds it. None, and always
            with ``openvino``, which has sizes of its own: as they come.
        precision: of OpenVINO's network; None for ``f32``. ``bf16`` is another network, which is then the target.

    Raises:
        ImportError: OpenVINO is asked for and not installed.
        ValueError: there is no compiled form of it; the message says what has one. Or a precision without ``openvino``.
    """
    if isinstance(sampler, (CompiledSampler, CompiledChain, RuntimeChain)):
        return sampler
    if isinstance(sampler, CompositeSampler):
        return sampler.with_parts(lambda part: compile_sampler(part, backend, batches, precision))
    if backend == "openvino":
        if isinstance(sampler, SpeculativeSampler):
            return RuntimeSampler(sampler, precision or "f32")
        if isinstance(sampler, (SequentialSampler, SchedulerSampler)):
            return RuntimeChain(sampler, precision or "f32")
    elif precision not in (None, "f32"):
        raise ValueError(f"precision={precision!r} is for backend='openvino'; elsewhere convert the policy itself")
    if isinstance(sampler, SpeculativeSampler):
        return CompiledSampler(sampler, backend, batches=batches)
    if isinstance(sampler, SequentialSampler):
        return CompiledChain(sampler.process, sampler.exact, backend, batches)
    if isinstance(sampler, SchedulerSampler) and not sampler.step_arguments.get("eta", 0.0):
        return CompiledChain(ReverseProcess.deterministic(sampler.scheduler), False, backend, batches)
    raise ValueError(
        f"{sampler!r} has no compiled form; SpeculativeSampler, SequentialSampler and SchedulerSampler of a "
        "DDIMScheduler with eta = 0 have one"
    )
