"""How does NFE grow with the chain and the event, and time with the network and its rows?

    python benchmarks/bench_scaling.py
    python benchmarks/bench_scaling.py --device cuda --calls 50

NFE: free drafts and block verification on mixtures of Gaussians whose denoiser is known in closed form, so that no
training blurs them; steps, event size and window vary. Time: U-Nets of random weights from 1 to 200 M parameters, a
pass over several rows against one row, which is what decides how wide a window pays.
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Callable
from typing import Any

import torch
from diffusers import DDPMScheduler
from side_by_side import keep, parameters, ratio, shown, take_turns
from torch import Tensor

from specpolicy import ReverseProcess, SpeculativeSampler
from specpolicy.evaluation.statistics import mean_interval
from specpolicy.policies.networks.unet1d import ConditionalUnet1d
from specpolicy.utils.progress import progress_bar

STEPS, EVENTS, WINDOWS, ROWS = (20, 50, 100, 250, 1000), (32, 128, 512, 4096), (6, 12, 24, 40), (6, 12, 24, 40)
NETWORKS = {"1 M": (32, 64, 128), "4 M": (64, 128, 256), "17 M": (128, 256, 512), "66 M": (256, 512, 1024)}
LARGEST = {"200 M": (448, 896, 1792)}


class Mixture:
    """Four Gaussians of standard deviation .05 at random places of [−1, 1]^d, predicting x̂0 exactly."""

    def __init__(self, size: int, alpha_bars: Tensor) -> None:
        self.means = torch.rand(4, size, generator=torch.Generator().manual_seed(7)).double() * 2 - 1
        self.alpha_bars, self.scale = alpha_bars.double(), 0.05

    def __call__(self, x: Tensor, timestep: Tensor, cond: None) -> Tensor:
        """The mean of x̂0 given x."""
        alpha = self.alpha_bars[timestep][:, None]
        variance = alpha * self.scale**2 + 1 - alpha
        away = x.double()[:, None] - alpha.sqrt()[..., None] * self.means
        weight = (-away.square().sum(-1) / 2 / variance).softmax(1)
        x0 = self.means + (alpha.sqrt() * self.scale**2 / variance)[..., None] * away
        return (weight[..., None] * x0).sum(1).to(x.dtype)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--chains", type=int, default=40)
    parser.add_argument("--calls", type=int, default=8)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    device = torch.device(options.device)
    chain = [_passes(options.chains, steps, 128, 24) for steps in STEPS]
    event = [_passes(options.chains, 100, size, 24) for size in EVENTS]
    window = [_passes(options.chains, 100, 128, width) for width in WINDOWS]
    networks = {**NETWORKS, **(LARGEST if device.type == "cuda" else {})}
    rows = {name: _rows(channels, options.calls, device) for name, channels in networks.items()}
    table = [f"# Scaling, {device.type}", "", f"NFE of free block, {options.chains} chains of a known mixture.", ""]
    table += ["| steps | numbers | window | passes | steps a pass |", "| ---: | ---: | ---: | ---: | ---: |"]
    for row in itertools.chain(chain, event, window):
        gain = row["steps"] / row["passes"]["value"]
        line = f"| {row['steps']} | {row['size']} | {row['window']} | {shown(row['passes'], 1)} | {gain:.1f} |"
        if line not in table:
            table.append(line)
    heads = [f"{count} rows" for count in ROWS]
    table += ["", f"A pass over several rows takes times one row, {options.calls} calls in turn.", ""]
    table += [f"| parameters | {' | '.join(heads)} |", f"| ---: | {' | '.join(['---:'] * len(heads))} |"]
    table += [
        f"| {name} | {' | '.join(shown(each) for each in row['against_one'].values())} |" for name, row in rows.items()
    ]
    content = {"passes": {"steps": chain, "event": event, "window": window}, "networks": rows}
    keep("scaling", device.type, content, table, device)


def _passes(chains: int, steps: int, size: int, window: int) -> dict[str, Any]:
    scheduler = DDPMScheduler(
        max(100, steps), beta_schedule="squaredcos_cap_v2", prediction_type="sample", clip_sample=False
    )
    process = ReverseProcess.from_scheduler(scheduler, steps)
    generators = [torch.Generator().manual_seed(row) for row in range(chains)]
    noise = torch.stack([torch.randn(size, generator=each) for each in generators])
    sampler = SpeculativeSampler(process, window=window)
    result = sampler(Mixture(size, scheduler.alphas_cumprod), noise, generator=generators)
    passes = mean_interval(result.passes.double().numpy())._asdict()
    return {"steps": steps, "size": size, "window": window, "chains": chains, "passes": passes}


def _rows(channels: tuple[int, ...], calls: int, device: torch.device) -> dict[str, Any]:
    network = ConditionalUnet1d(7, 46, channels, timestep_dim=64).eval().to(device)

    def way(count: int) -> Callable[[int], Any]:
        x, cond = torch.randn(count, 16, 7, device=device), torch.randn(count, 46, device=device)
        timesteps = torch.randint(0, 100, (count,), device=device)
        return lambda _: network(x, timesteps, cond)

    with torch.inference_mode(), progress_bar(f"{parameters(network) / 1e6:.0f} M", 1):
        taken = take_turns({str(count): way(count) for count in (1, *ROWS)}, calls, device)
    against = {f"{count} rows": ratio(taken[str(count)], taken["1"]) for count in ROWS}
    median = {name: sorted(each)[len(each) // 2] for name, each in taken.items()}
    return {"parameters": parameters(network), "calls": calls, "median_ms": median, "against_one": against}


if __name__ == "__main__":
    main()
