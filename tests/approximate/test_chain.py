"""Evaluations through the cache, in every family of networks."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import tiny_networks as tiny
import torch
from torch import Tensor

from specpolicy.approximate.specdiff.importance import CacheSettings, CachingError, count_operations, trajectory_of
from specpolicy.approximate.specdiff.sampler import cached

TIMES = [800.0, 700.0, 600.0, 500.0, 400.0, 300.0, 200.0, 100.0]
COURSE = trajectory_of(tiny.scheduler())


class StandingStill:
    """A course on which the state does not move."""

    def jump(self, x: Tensor, output: Tensor, now: float, then: float) -> Tensor:
        return x


@pytest.fixture(params=tiny.NETWORKS)
def asked(request: pytest.FixtureRequest) -> tiny.Asked:
    return tiny.NETWORKS[request.param]()


def states(asked: tiny.Asked) -> list[Tensor]:
    """A state for each time, moving slowly."""
    other = torch.randn(asked.x.shape, generator=torch.Generator().manual_seed(7))
    return [asked.x + 0.02 * step * other for step in range(len(TIMES))]


@torch.no_grad()
def run(asked: tiny.Asked, course: Any = COURSE, **settings: Any) -> tuple[list[Tensor], Any]:
    with cached(asked.network, CacheSettings(**settings), course) as chain:
        outputs = [chain.step(asked.ask, x, TIMES[step:]) for step, x in enumerate(states(asked))]
    return outputs, chain


@torch.no_grad()
def test_nothing_cached_is_the_network_itself(asked: tiny.Asked) -> None:
    outputs, chain = run(asked, ratio=0.0)
    for output, x, time in zip(outputs, states(asked), TIMES, strict=True):
        torch.testing.assert_close(output, asked.ask(x, time), rtol=1e-4, atol=1e-5)
    assert chain.passes == chain.work == len(TIMES) + 2


@torch.no_grad()
@pytest.mark.parametrize("ratio", [0.3, 0.8])
def test_a_state_that_stands_still_has_the_networks_answer_whatever_is_cached(asked: tiny.Asked, ratio: float) -> None:
    """Keys, values and features in the cache are then those of now, so only their places could be wrong."""
    whole, picked = asked.ask(asked.x, 500.0), []
    with cached(asked.network, CacheSettings(ratio), StandingStill()) as chain:
        for step in range(6):
            output = chain.step(lambda x, _: asked.ask(x, 500.0), asked.x, TIMES[step:])
            torch.testing.assert_close(output, whole, rtol=1e-3, atol=2e-4)
            if step:
                assert chain.tokens.levels is not None
                picked.append(chain.tokens.levels.computed)
    assert any(not torch.equal(*rows) for rows in picked), "each row chooses by itself"


@pytest.mark.slow
def test_operations_fall_with_the_ratio_and_the_answers_stay_near(asked: tiny.Asked) -> None:
    def plain() -> None:
        with torch.no_grad():
            for x, time in zip(states(asked), TIMES, strict=True):
                found[None].append(asked.ask(x, time))

    def caching(ratio: float) -> None:
        found[ratio], chain = run(asked, ratio=ratio, speculative=1)
        assert chain.work == pytest.approx(2 + 7 * (1 - ratio))

    found: dict[float | None, list[Tensor]] = {None: []}
    whole = count_operations(plain)
    some, many = (count_operations(partial(caching, ratio)) for ratio in (0.25, 0.75))
    assert many < 0.75 * some and many < 0.75 * whole
    reference = torch.stack(found.pop(None))
    off = {ratio: float((torch.stack(each) - reference).std() / reference.std()) for ratio, each in found.items()}
    assert 1e-4 < off[0.25] < 0.4, off


@torch.no_grad()
def test_the_network_is_its_old_self_afterwards(asked: tiny.Asked) -> None:
    before, parts = asked.ask(asked.x, 500.0), dict(asked.network.named_modules())
    run(asked, ratio=0.5)
    assert torch.equal(asked.ask(asked.x, 500.0), before)
    for name, module in parts.items():
        assert not module._forward_hooks and not module._forward_pre_hooks and "mix" not in vars(module), name
        assert "Cach" not in type(getattr(module, "processor", None)).__module__
    with pytest.raises(ZeroDivisionError), cached(asked.network, CacheSettings(), COURSE):
        raise ZeroDivisionError
    assert torch.equal(asked.ask(asked.x, 500.0), before)


def test_rows_do_not_meet() -> None:
    """Two rows that each have a cache of their own, and the same two in one batch."""
    asked = tiny.policy_network()
    together, _ = run(asked, ratio=0.6)
    moved = states(asked)
    with cached(asked.network, CacheSettings(ratio=0.6), COURSE) as chain, torch.no_grad():
        for step, x in enumerate(moved):
            output = chain.step(asked.ask, torch.stack([x[0], 3 - x[1]]), TIMES[step:])
            torch.testing.assert_close(output[0], together[step][0], rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_networks_of_half_precision_keep_it() -> None:
    asked = tiny.dit()
    asked.network.bfloat16()
    x = asked.x.bfloat16()
    with cached(asked.network, CacheSettings(0.5), COURSE) as chain:
        outputs = [chain.step(asked.ask, x, TIMES[step:]) for step in range(4)]
    assert all(output.dtype == torch.bfloat16 and torch.isfinite(output).all() for output in outputs)


@torch.no_grad()
@pytest.mark.parametrize("name", ["causal policy", "dit"])
def test_no_token_starves(name: str) -> None:
    asked = tiny.NETWORKS[name]()
    longest = []
    with cached(asked.network, CacheSettings(ratio=0.75), COURSE) as chain:
        for step in range(60):
            chain.step(asked.ask, asked.x, [float(90 - step)])
            assert chain.tokens.served is not None
            longest.append(int(chain.tokens.served.max()))
    assert 3 < max(longest) < 20, "sixty steps, and every token was computed again and again"


def test_passes_out_of_order_are_refused() -> None:
    asked = tiny.policy_network()
    with cached(asked.network, CacheSettings(speculative=0), None) as chain, torch.no_grad():
        chain.step(asked.ask, asked.x, [50.0])
        for time in (50.0, 60.0):
            with pytest.raises(CachingError, match=f"evaluation at time {time:g} after one at 50: caching needs one"):
                chain.step(asked.ask, asked.x, [time])


@torch.no_grad()
def test_a_batch_of_another_size_begins_anew() -> None:
    asked = tiny.policy_network(batch=4)
    with cached(asked.network, CacheSettings(ratio=0.5, speculative=0), None) as chain:
        for time in (50.0, 40.0):
            chain.step(asked.ask, asked.x, [time])
        assert chain.tokens.levels is not None
        half = chain.step(asked.ask, asked.x[:2], [30.0])
        assert chain.tokens.levels is None
    torch.testing.assert_close(half, asked.ask(asked.x[:2], 30.0), rtol=1e-4, atol=1e-5)


def test_networks_that_do_not_fit() -> None:
    with pytest.raises(CachingError, match="Linear has no tokens to cache; caching works for TransformerDenoiser"):  # noqa: SIM117
        with cached(torch.nn.Linear(2, 2), CacheSettings(), COURSE):
            pass
    asked: Any = tiny.dit()
    asked.network.transformer_blocks[1].attn1.processor = object()
    with pytest.raises(CachingError, match="processed by object; caching knows AttnProcessor2_0"):  # noqa: SIM117
        with cached(asked.network, CacheSettings(), COURSE):
            pass
    assert not asked.network.transformer_blocks[0]._forward_pre_hooks, "and nothing is left behind"


@pytest.mark.parametrize("wrong", [{"ratio": 1.0}, {"ratio": -0.1}, {"copied": 1.5}, {"speculative": -1}])
def test_bad_settings(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=f"{next(iter(wrong))}="):
        CacheSettings(**wrong)  # type: ignore[arg-type]
