"""The same samples from two processes as from one."""

from __future__ import annotations

import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

import specpolicy
from specpolicy.speculative.distributed import RanksDisagreeError, SplitDenoiser, SplitSampler

PROGRAM = """
import sys
from pathlib import Path

import torch, torch.distributed as dist
from diffusers import DDPMScheduler
import specpolicy
from specpolicy.speculative.distributed import RanksDisagreeError, SplitSampler

dist.init_process_group("gloo")
rank = dist.get_rank()
scheduler = DDPMScheduler(40, beta_schedule="squaredcos_cap_v2")
process = specpolicy.ReverseProcess.from_scheduler(scheduler, 40)
rows = 0

def denoiser(x, timestep, cond):
    global rows
    rows += len(x)
    return 0.3 * x + 0.1 * torch.tanh(x.flip(1) + cond["goal"]) + timestep[:, None] / 400

noise = torch.randn(3, 5, generator=torch.Generator().manual_seed(1))
cond = {"goal": torch.linspace(-1, 1, 3)[:, None].expand(3, 5)}
sampler = specpolicy.SpeculativeSampler(process, window=9)
result = SplitSampler(sampler)(denoiser, noise, cond=cond, generator=torch.Generator().manual_seed(2))
mine, whole = rows, int(result.evaluations.sum())
alone = sampler(denoiser, noise, cond=cond, generator=torch.Generator().manual_seed(2))
same = bool(torch.allclose(result.sample, alone.sample, atol=1e-5)) and bool((result.passes == alone.passes).all())
said = [f"same {same}, shared {0.4 * whole < mine < 0.75 * whole}"]
try:
    SplitSampler(sampler)(denoiser, noise, cond=cond, generator=torch.Generator().manual_seed(2 + rank))
except RanksDisagreeError as error:
    said.append(str(error))
Path(sys.argv[1], str(rank)).write_text("\\n".join(said))
dist.destroy_process_group()
"""


@pytest.mark.skipif(not dist.is_gloo_available(), reason="needs torch with gloo")
def test_two_processes_share_the_rows_and_draw_the_same_sample_unless_their_seeds_differ(tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node=2",
        str(program),
        str(tmp_path),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    for rank in (0, 1):  # to a file each, since the ranks' standard output is one and gets mixed
        same, apart = (tmp_path / str(rank)).read_text().splitlines()
        assert same == "same True, shared True"
        assert "the ranks ask for different rows" in apart and "equally seeded generators" in apart


@pytest.fixture
def alone() -> Iterator[None]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def identity(x: torch.Tensor, timestep: torch.Tensor, cond: object) -> torch.Tensor:
    return 0.5 * x


def test_a_group_of_one_computes_everything(alone: None) -> None:
    x = torch.randn(4, 2)
    assert torch.equal(SplitDenoiser(identity)(x, torch.zeros(4, dtype=torch.long), None), 0.5 * x)


def test_without_a_group_the_error_says_how_to_get_one() -> None:
    with pytest.raises(RuntimeError, match="torchrun"):
        SplitDenoiser(identity)
    assert issubclass(RanksDisagreeError, RuntimeError)


def test_exact_or_not_is_the_samplers_own_to_say() -> None:
    from diffusers import DDPMScheduler

    from specpolicy import samplers

    scheduler = DDPMScheduler(100)
    assert (
        SplitSampler(samplers.sequential(scheduler, 20)).exact and not SplitSampler(samplers.ddim(scheduler, 5)).exact
    )
    assert SplitSampler(specpolicy.asd(specpolicy.ReverseProcess.from_scheduler(scheduler, 100))).exact
