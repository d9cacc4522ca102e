"""Where does the time of a round go: the network, or what is around it?

    python benchmarks/profile_rounds.py square
    python benchmarks/profile_rounds.py --channels 256 512 1024 --device cuda

A whole round (draft, pass, verification, residual, advance) is timed beside the same pass alone and beside one row of
it, eager and compiled, all in turn. The floor is what the device needs at least: to read the weights once, and to do
the pass's multiplications, at the rates that a copy and a matrix product of the same size reach here.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

import torch
from side_by_side import ROOT, keep, parameters, ratio, shown, synchronize, take_turns
from torch.utils.flop_counter import FlopCounterMode

from specpolicy import BlockVerifier, FreeDrafter, ReverseProcess, SpeculativeSampler
from specpolicy.policies.diffusion_policy import DiffusionPolicy
from specpolicy.policies.networks.unet1d import ConditionalUnet1d
from specpolicy.speculative.compiled.round import RoundState
from specpolicy.speculative.compiled.sampler import CompiledSampler, full_draws
from specpolicy.speculative.random_streams import ChainGenerators


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task", nargs="?", help="a shipped policy; none for a U-Net of random weights")
    parser.add_argument("--channels", type=int, nargs="*", default=[256, 512, 1024])
    parser.add_argument("--windows", type=int, nargs="*", default=[6, 12, 24, 40])
    parser.add_argument("--calls", type=int, default=30)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--no-compile", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    device = torch.device(options.device)
    if options.task:
        policy = DiffusionPolicy.from_pretrained(ROOT / "checkpoints" / options.task, device)
        network, scheduler, event = policy, policy.scheduler, policy.event_shape
        cond = torch.randn(1, policy.observations.dim * policy.config.n_obs_steps, device=device)
    else:
        square = DiffusionPolicy.from_pretrained(ROOT / "checkpoints" / "square")
        scheduler, event = square.scheduler, square.event_shape
        cond_dim = square.observations.dim * square.config.n_obs_steps
        network = ConditionalUnet1d(event[1], cond_dim, options.channels, timestep_dim=256).eval().to(device)
        cond = torch.randn(1, cond_dim, device=device)
    process = ReverseProcess.from_scheduler(scheduler, 100)
    name = options.task or f"unet-{parameters(network) / 1e6:.0f}M"

    rows: dict[str, Any] = {}
    for window in options.windows:
        rows[str(window)] = _measure(network, process, cond, event, window, options.calls, device, options.no_compile)
    table = [f"# A round of {name}: {parameters(network) / 1e6:.1f} M parameters, {device.type}", ""]
    heads = list(next(iter(rows.values()))["against_one_row"])
    table += [
        "Times a pass over one row (eager); what is not the network, and the floor, as shares of the fastest round.",
        "",
        f"| window | {' | '.join(heads)} | around the network, % | floor, % |",
        f"| ---: | {' | '.join(['---:'] * (len(heads) + 2))} |",
    ]
    for window, row in rows.items():
        cells = [shown(row["against_one_row"][head]) for head in heads]
        around = f"{row['around_percent']:.0f} | {row['floor_percent']:.0f}"
        table.append(f"| {window} | {' | '.join(cells)} | {around} |")
    keep("rounds", f"{name}-{device.type}", {"network": name, "windows": rows}, table, device)


def _measure(
    network: Any, process: ReverseProcess, cond: torch.Tensor, event: tuple[int, ...], window: int, calls: int,
    device: torch.device, plain: bool,
) -> dict[str, Any]:  # fmt: skip
    sampler = SpeculativeSampler(process, FreeDrafter(), BlockVerifier(), window)
    noise = torch.randn(1, *event, device=device)
    x = torch.randn(window + 1, *event, device=device)
    timesteps = torch.randint(0, 100, (window + 1,), device=device)
    conds = cond.expand(window + 1, -1).contiguous()
    ways: dict[str, Callable[[int], Any]] = {
        "one row": lambda _: network(x[:1], timesteps[:1], conds[:1]),
        "the pass": lambda _: network(x, timesteps, conds),
        "a round, plain": _round(CompiledSampler(sampler, "plain", (window,)), network, noise, cond, window),
    }
    if not plain:
        ways["a round, compiled"] = _round(CompiledSampler(sampler, None, (window,)), network, noise, cond, window)
        if device.type == "cuda":
            # what a captured round holds has to be compared with a captured pass
            graph = torch.cuda.CUDAGraph()
            with torch.inference_mode():
                for _ in range(3):
                    network(x, timesteps, conds)
                with torch.cuda.graph(graph):
                    network(x, timesteps, conds)
            ways["the pass, captured"] = lambda _: graph.replay()
        else:
            compiled = torch.compile(network, dynamic=False)
            ways["the pass, compiled"] = lambda _: compiled(x, timesteps, conds)
    with torch.inference_mode():
        taken = take_turns(ways, calls, device, warmup=3)
        flops, bytes_read = _work(network, x, timesteps, conds)
        floor = _floor_ms(flops, bytes_read, window + 1, device)
    median = {name: sorted(each)[len(each) // 2] for name, each in taken.items()}
    rounds = [name for name in median if name.startswith("a round")]
    passes = [name for name in median if name.startswith("the pass")]
    best, alone = min(median[name] for name in rounds), min(median[name] for name in passes)
    return {
        "calls": calls,
        "median_ms": median,
        "against_one_row": {name: ratio(each, taken["one row"]) for name, each in taken.items() if name != "one row"},
        "around_percent": 100 * max(0.0, best - alone) / best,
        "floor_percent": 100 * floor / best,
        "floor_ms": floor,
        "flops": flops,
        "weight_bytes": bytes_read,
    }


def _round(
    sampler: CompiledSampler, network: Any, noise: torch.Tensor, cond: torch.Tensor, window: int
) -> Callable[[int], Any]:
    with torch.inference_mode():
        rounds, runner, _ = sampler.prepare(network, noise, cond)
        start = RoundState.start(noise, sampler.process.num_steps, record=False)
        random = ChainGenerators(torch.Generator().manual_seed(0), 1, noise.device, noise.dtype)

    def one(_: int) -> None:
        runner.start(start, cond)  # always the chain's first steps: a round has the same shape everywhere
        runner.apply(rounds.advance, full_draws(random, window, noise))

    return one


def _work(network: Any, x: torch.Tensor, timesteps: torch.Tensor, conds: torch.Tensor) -> tuple[int, int]:
    with FlopCounterMode(display=False) as counter:
        network(x, timesteps, conds)
    return counter.get_total_flops(), sum(each.numel() * each.element_size() for each in network.parameters())


def _floor_ms(flops: int, weight_bytes: int, rows: int, device: torch.device) -> float:
    """Reading and multiplying overlap at best, so that the longer of the two is the least time."""
    wide = torch.randn(1024, 1024, device=device)
    thin = torch.randn(rows, 1024, device=device)
    many = torch.randn(max(1, weight_bytes // 4), device=device)

    def least(work: Callable[[], Any]) -> float:
        times = take_turns({"once": lambda _: work()}, 15, device, warmup=3)["once"]
        synchronize(device)
        return min(times)

    multiplied = 2 * rows * 1024 * 1024 / least(lambda: thin @ wide)
    read = least(many.sum)
    return max(read, flops / multiplied)


if __name__ == "__main__":
    main()
