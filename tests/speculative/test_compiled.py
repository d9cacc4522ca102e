"""Rounds in static shapes: the same samples from the same seeds, the same distribution, buffers that stay inside."""

from __future__ import annotations

import itertools
import shutil
import subprocess
import sys
from collections.abc import Callable

import pytest
import torch
from diffusers import DDIMScheduler
from mixtures import chains, ddpm, mixture

import specpolicy.speculative.compiled.sampler as compiled_sampler
from specpolicy import (
    AdaptiveWindow,
    BlockVerifier,
    DenoiserError,
    FreeDrafter,
    FrozenDrafter,
    LinearDrafter,
    RecyclingDrafter,
    ReflectionVerifier,
    ResidualVerifier,
    ReverseProcess,
    SchedulerSampler,
    SequentialSampler,
    SpeculativeSampler,
    X0Jacobian,
    ZeroGuess,
)
from specpolicy.speculative.compiled.backends import GraphRunner, make_runner
from specpolicy.speculative.compiled.sampler import CompiledChain, CompiledSampler, compile_sampler
from specpolicy.speculative.drafters.base import Drafter
from specpolicy.speculative.exactness import check_exactness
from specpolicy.speculative.initial_guess import X0Guess
from specpolicy.speculative.verifiers import Verifier

VERIFIERS = [BlockVerifier, ReflectionVerifier, ResidualVerifier]


def streams(count: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in range(count)]


def linear(dim: int, steps: int) -> LinearDrafter:
    return LinearDrafter(X0Jacobian(torch.linspace(0.0, 0.6, steps)[:, None].expand(steps, dim)))


PAIRS: list[tuple[Drafter, X0Guess | None]] = [
    (FreeDrafter(), None),
    (FreeDrafter(), ZeroGuess()),
    (FrozenDrafter(), None),
    (RecyclingDrafter(), ZeroGuess()),
    (RecyclingDrafter(linear(3, 30).jacobian), None),
]
TRIPLES = [(*pair, verifier) for pair, verifier in itertools.product(PAIRS, VERIFIERS)]


@pytest.mark.parametrize(
    ("drafter", "initial_guess", "verifier"), [each for each in TRIPLES if each[2].causal or not each[0].recycles]
)
def test_equal_seeds_give_equal_samples(
    drafter: Drafter, initial_guess: X0Guess | None, verifier: Callable[[], Verifier]
) -> None:
    scheduler, process = ddpm(30)
    target, (noise, _) = mixture(scheduler, 3), chains(5, 3)
    eager = SpeculativeSampler(process, drafter, verifier(), window=9, initial_guess=initial_guess)
    compiled = CompiledSampler(eager, "plain", widths=(4, 9))
    cond = torch.linspace(-0.2, 0.2, 5)[:, None]
    wanted = eager(target, noise, cond=cond, generator=streams(5), record=True)
    got = compiled(target, noise, cond=cond, generator=streams(5), record=True)
    for name in ("sample", "trajectory", "x0"):
        torch.testing.assert_close(getattr(got, name), getattr(wanted, name), atol=1e-7, rtol=1e-6)
    for name in ("start", "proposed", "accepted"):
        assert torch.equal(getattr(got, name), getattr(wanted, name)), name
    # A frozen drafter's last step needs no batched pass; a round of one shape makes it nevertheless.
    assert bool(((got.passes - wanted.passes) <= int(drafter.refreshes)).all() and (got.passes >= wanted.passes).all())
    assert (got.evaluations >= wanted.evaluations).all()  # padding is computed, and owned up to


def test_windows_by_position_single_generators_and_linear_drafts() -> None:
    scheduler, process = ddpm(20)
    target, (noise, generator) = mixture(scheduler, 3), chains(1, 3, dtype=torch.float32)
    lengths = [3, 5, 7, 11] * 5
    eager = SpeculativeSampler(process, linear(3, 20), BlockVerifier(), window=lengths, initial_guess=ZeroGuess())
    start = generator.get_state()
    wanted = eager(target, noise, generator=generator)
    generator.set_state(start)
    got = CompiledSampler(eager, "plain")(target, noise, generator=generator)
    torch.testing.assert_close(got.sample, wanted.sample, atol=1e-5, rtol=1e-5)
    assert got.accepted is not None and wanted.accepted is not None
    assert torch.equal(got.accepted, wanted.accepted)


@pytest.mark.parametrize(("steps", "window", "batch"), [(8, 3, 10_000), (20, 6, 4_000)])
def test_rounds_that_run_ahead_have_the_law(steps: int, window: int, batch: int) -> None:
    scheduler, process = ddpm(steps)
    noise, generator = chains(batch, 1)
    sampler = CompiledSampler(SpeculativeSampler(process, window=window), "plain", widths=(window,))
    result = sampler(mixture(scheduler, 1), noise, generator=generator, record=True)
    assert sampler.exact
    assert check_exactness(process, result).smallest > 1e-3
    assert result.accepted is not None and float((result.accepted >= 0).double().mean()) < 1  # some had to wait idly


def test_wrong_rounds_are_found_out() -> None:
    scheduler, process = ddpm(8)
    noise, generator = chains(10_000, 1)

    class Credulous(BlockVerifier):
        def judge(self, comparison, uniform):  # type: ignore[no-untyped-def]
            return super().judge(comparison, uniform * 0.8)

    eager = SpeculativeSampler(process, verifier=Credulous(), window=3)
    result = CompiledSampler(eager, "plain", widths=(3,))(
        mixture(scheduler, 1), noise, generator=generator, record=True
    )
    assert check_exactness(process, result).smallest < 1e-6


@pytest.mark.parametrize(
    ("drafter", "verifier"), [(FreeDrafter(), BlockVerifier()), (RecyclingDrafter(), ReflectionVerifier())]
)
@pytest.mark.parametrize("replay", [None, 4])
def test_pre_drafts(replay: int | None, drafter: Drafter, verifier: Verifier) -> None:
    scheduler, process = ddpm(20)
    target, (noise, _) = mixture(scheduler, 2), chains(4, 2)
    eager = SpeculativeSampler(process, drafter, verifier, window=8, replay=replay)
    compiled = CompiledSampler(eager, "plain", widths=(8, 20))
    old, new = torch.zeros(4, 1), torch.full((4, 1), 0.01)
    draft = eager.predraft(target, noise, cond=old, generator=streams(4))
    again = compiled.predraft(target, noise, cond=old, generator=streams(4))
    torch.testing.assert_close(again.states, draft.states)
    later = [torch.Generator().manual_seed(90 + seed) for seed in range(4)]
    wanted = eager(target, draft.start, cond=new, generator=later, predraft=draft)
    later = [torch.Generator().manual_seed(90 + seed) for seed in range(4)]
    got = compiled(target, draft.start, cond=new, generator=later, predraft=draft)
    torch.testing.assert_close(got.sample, wanted.sample, atol=1e-7, rtol=1e-6)
    assert got.replayed is not None and wanted.replayed is not None
    assert torch.equal(got.replayed, wanted.replayed)
    assert torch.equal(got.passes, wanted.passes)


@pytest.mark.parametrize("widths", [(4, 9), (9,)])
@pytest.mark.parametrize(
    ("drafter", "initial_guess", "verifier"),
    [
        (FreeDrafter(), None, BlockVerifier()),
        (FrozenDrafter(), None, BlockVerifier()),
        (RecyclingDrafter(linear(3, 30).jacobian), ZeroGuess(), ReflectionVerifier()),
    ],
)
def test_filled_batches_give_what_the_batch_alone_gives(
    drafter: Drafter, initial_guess: X0Guess | None, verifier: Verifier, widths: tuple[int, ...]
) -> None:
    scheduler, process = ddpm(30)
    target, (noise, _) = mixture(scheduler, 3), chains(3, 3)
    cond = torch.linspace(-0.2, 0.2, 3)[:, None]
    asked: list[int] = []

    def network(x, timestep, cond):  # type: ignore[no-untyped-def]
        asked.append(len(x))
        return target(x, timestep, cond)

    eager = SpeculativeSampler(process, drafter, verifier, window=9, initial_guess=initial_guess)
    alone = CompiledSampler(eager, "plain", widths)
    full = CompiledSampler(eager, "plain", widths, batches=[1, 4, 8])
    for several in (True, False):
        wanted, got = (
            sampler(
                network, noise, cond=cond, generator=streams(3) if several else torch.Generator().manual_seed(3),
                record=True,
            )
            for sampler in (alone, full)
        )  # fmt: skip
        for name in ("sample", "trajectory", "x0", "start", "proposed", "accepted", "passes", "evaluations"):
            torch.testing.assert_close(getattr(got, name), getattr(wanted, name), msg=name)
    asked.clear()
    full(network, noise, cond=cond, generator=streams(3))
    assert all(rows % 4 == 0 for rows in asked)
    asked.clear()
    many, _ = chains(9, 3)
    assert len(full(network, many, cond=torch.zeros(9, 1), generator=streams(9)).sample) == 9
    assert all(rows % 9 == 0 for rows in asked)


def test_filled_batches_replay_pre_drafts_and_walk_step_by_step() -> None:
    scheduler, process = ddpm(20)
    target, (noise, _) = mixture(scheduler, 2), chains(3, 2)
    eager = SpeculativeSampler(process, RecyclingDrafter(), ReflectionVerifier(), window=8)
    alone, full = (CompiledSampler(eager, "plain", (8, 20), sizes) for sizes in (None, [2, 5]))
    cond = torch.zeros(3, 1)
    drafts = [sampler.predraft(target, noise, cond=cond, generator=streams(3)) for sampler in (alone, full)]
    torch.testing.assert_close(drafts[0].states, drafts[1].states)
    wanted, got = (
        sampler(target, drafts[0].start, cond=cond + 0.01, generator=streams(3), predraft=drafts[0])
        for sampler in (alone, full)
    )
    torch.testing.assert_close(got.sample, wanted.sample)
    assert got.replayed is not None and wanted.replayed is not None and torch.equal(got.replayed, wanted.replayed)
    chain, filled = (CompiledChain(process, True, "plain", sizes) for sizes in (None, [2, 5]))
    wanted, got = (sampler(target, noise, cond=cond, generator=streams(3)) for sampler in (chain, filled))
    torch.testing.assert_close(got.sample, wanted.sample)
    assert torch.equal(got.passes, wanted.passes)


@pytest.mark.parametrize("sizes", [[], [0, 1], [4, 2], [2, 2]])
def test_batches_that_do_not_rise_are_refused(sizes: list[int]) -> None:
    _, process = ddpm(8)
    for make in (
        lambda: CompiledSampler(SpeculativeSampler(process, window=3), "plain", batches=sizes),
        lambda: CompiledChain(process, True, "plain", sizes),
    ):
        with pytest.raises(ValueError, match="expected rising batch sizes"):
            make()


def test_recorded_rounds_live_in_buffers_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a CUDA graph does, with a recorder that calls the work again."""
    recorded = []

    def record(work: Callable[[], None]) -> Callable[[], None]:
        work()  # a capture's warm-up: leaves traces in the buffers
        recorded.append(work)
        return work

    monkeypatch.setattr(compiled_sampler, "make_runner", lambda backend: GraphRunner(False, record))
    scheduler, process = ddpm(20)
    target = mixture(scheduler, 3)
    eager = SpeculativeSampler(process, window=6)
    compiled = CompiledSampler(eager, widths=(3, 6))
    results = []
    for seed in range(3):
        noise, _ = chains(2, 3, seed=seed)
        results.append((compiled(target, noise, generator=streams(2)), eager(target, noise, generator=streams(2))))
    for got, wanted in results:  # compared when all have been made: nothing may have been written over
        torch.testing.assert_close(got.sample, wanted.sample, atol=1e-7, rtol=1e-6)
        assert torch.equal(got.passes, wanted.passes)
    assert len(recorded) == 3  # the start, and a round of each width
    with torch.inference_mode():
        noise, _ = chains(3, 3)
        compiled(target, noise, generator=streams(3))
    compiled(target, chains(3, 3)[0], generator=streams(3))  # buffers made in inference mode serve outside of it
    assert len(recorded) > 3  # another batch size takes records of its own


def test_sequential_chains_and_ddim() -> None:
    scheduler, process = ddpm(12)
    target, (noise, _) = mixture(scheduler, 3), chains(4, 3)
    wanted = SequentialSampler(process)(target, noise, generator=streams(4))
    chain = compile_sampler(SequentialSampler(process), "plain")
    got = chain(target, noise, generator=streams(4))
    torch.testing.assert_close(got.sample, wanted.sample, atol=1e-9, rtol=1e-9)
    assert chain.exact and got.passes.tolist() == [12] * 4

    few = SchedulerSampler(DDIMScheduler.from_config(scheduler.config, num_train_timesteps=100), 5, {"eta": 0.0})
    chain = compile_sampler(few, "plain")
    torch.testing.assert_close(chain(target, noise).sample, few(target, noise).sample, atol=1e-6, rtol=1e-6)
    assert not chain.exact
    assert "approximate" in repr(chain)


@pytest.mark.parametrize("clip", [False, True])
def test_deterministic_processes_are_ddim(clip: bool) -> None:
    scheduler, _ = ddpm(12, clip_sample=clip, clip_sample_range=0.4)
    few = DDIMScheduler.from_config(scheduler.config, num_train_timesteps=100)
    process = ReverseProcess.deterministic(few, 6)
    assert not process.sigma.any()
    target, (noise, _) = mixture(scheduler, 3), chains(4, 3)
    got = CompiledChain(process, exact=False, backend="plain")(target, noise)
    wanted = SchedulerSampler(few, 6, {"eta": 0.0})(target, noise)
    torch.testing.assert_close(got.sample, wanted.sample, atol=1e-6, rtol=1e-6)
    with pytest.raises(ValueError, match="DDIMScheduler is"):
        ReverseProcess.deterministic(scheduler, 6)


PROGRAM = """
import torch
from diffusers import DDPMScheduler
from specpolicy import ReverseProcess, SpeculativeSampler, ZeroGuess
from specpolicy.speculative.compiled import CompiledSampler

def network(x, timestep, cond):
    return 0.3 * x + 0.1 * torch.tanh(x.flip(1) + cond) + timestep[:, None] / 400

process = ReverseProcess.from_scheduler(DDPMScheduler(100, beta_schedule="squaredcos_cap_v2"), 6)
noise, cond = torch.randn(1, 3, generator=torch.Generator().manual_seed(1)), torch.full((1, 3), 0.2)
eager = SpeculativeSampler(process, window=2, initial_guess=ZeroGuess())
compiled, plain = CompiledSampler(eager, widths=(2,)), CompiledSampler(eager, "plain", widths=(2,))
compiled.warm_up(network, noise, cond)
for seed in range(3):
    generators = [torch.Generator().manual_seed(seed) for _ in range(2)]
    got = compiled(network, noise, cond=cond, generator=generators[0])
    wanted = plain(network, noise, cond=cond, generator=generators[1])
    torch.testing.assert_close(got.sample, wanted.sample, atol=1e-5, rtol=1e-5)
    assert torch.equal(got.accepted, wanted.accepted)
counters = torch._dynamo.utils.counters
assert not counters["graph_break"], counters["graph_break"]
print("compiled", counters["stats"]["unique_graphs"])
"""


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("c++") is None, reason="needs a C++ compiler")
def test_compiled_by_torch() -> None:
    """Through the real compiler, in a process of its own: checked annotations are not compiled."""
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, timeout=500, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("compiled")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
@pytest.mark.parametrize("backend", ["graph", "graph+inductor"])
def test_captured_on_cuda(backend: str) -> None:
    scheduler, process = ddpm(20)
    target = mixture(scheduler, 1)
    target.means, target.alpha_bars = target.means.cuda(), target.alpha_bars.cuda()
    noise = chains(4_000, 1)[0].cuda()
    sampler = CompiledSampler(SpeculativeSampler(process, window=6), backend)  # type: ignore[arg-type]
    result = sampler(target, noise, generator=torch.Generator("cuda").manual_seed(1), record=True)
    on_cpu = {name: getattr(result, name).cpu() for name in ("sample", "trajectory", "x0")}
    result = type(result)(**{**vars(result), **on_cpu})
    assert check_exactness(process, result).smallest > 1e-3


def test_errors_say_what_to_do() -> None:
    scheduler, process = ddpm(10)
    target, (noise, generator) = mixture(scheduler, 2), chains(2, 2)
    with pytest.raises(ValueError, match="fixed shapes"):
        CompiledSampler(SpeculativeSampler(process, window=AdaptiveWindow()))
    with pytest.raises(ValueError, match="the last at least 4"):
        CompiledSampler(SpeculativeSampler(process, window=4), widths=(2, 3))
    with pytest.raises(Exception, match="fast"):  # the checked annotations of the tests are the first to say so
        make_runner("fast")  # type: ignore[arg-type]
    if not torch.cuda.is_available():
        with pytest.raises(ValueError, match="needs CUDA"):
            CompiledSampler(SpeculativeSampler(process), "graph")
    with pytest.raises(ValueError, match="no compiled form"):
        compile_sampler(object())
    sampler = CompiledSampler(SpeculativeSampler(process), "plain")
    with pytest.raises(ValueError, match="leading dimension 2"):
        sampler(target, noise, cond=torch.zeros(3, 1))
    with pytest.raises(ValueError, match="floating point"):
        sampler(target, noise[0])
    for broken in (SpeculativeSampler(process), SequentialSampler(process)):
        with pytest.raises(DenoiserError, match="NaN or infinity"):
            compile_sampler(broken, "plain")(lambda x, t, c: torch.full_like(x, torch.nan), noise, generator=generator)
    with pytest.raises(ValueError, match="record with SequentialSampler"):
        CompiledChain(process, True, "plain")(target, noise, record=True)


def test_other_networks_and_shapes_are_prepared_apart() -> None:
    scheduler, process = ddpm(10)
    eager = SpeculativeSampler(process, window=4)
    compiled = CompiledSampler(eager, "plain")
    for dim, batch in itertools.product((2, 3), (1, 2)):
        target, (noise, _) = mixture(scheduler, dim), chains(batch, dim)
        torch.testing.assert_close(
            compiled(target, noise, generator=streams(batch)).sample,
            eager(target, noise, generator=streams(batch)).sample,
            atol=1e-7,
            rtol=1e-6,
        )
