"""The network on OpenVINO: the same numbers, the same samples, kept files, and refusals in one line."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import specpolicy
from specpolicy import AdaptiveWindow, FreeDrafter, SampleResult, SpeculativeSampler, samplers
from specpolicy.cli import EXIT_USER_ERROR, main
from specpolicy.policies.config import PolicyConfig
from specpolicy.policies.diffusion_policy import DiffusionPolicy
from specpolicy.speculative.compiled import openvino_network
from specpolicy.speculative.compiled.openvino_network import BATCH_SIZES, ConversionError, OpenVINODenoiser, bucket
from specpolicy.speculative.compiled.runtime import RuntimeChain, RuntimeSampler
from specpolicy.speculative.exactness import check_exactness
from specpolicy.utils.digests import checkpoint_digest

pytest.importorskip("openvino", reason="needs the extra openvino")

ROOT = Path(__file__).parents[2]
CHECKPOINTS = ROOT / "checkpoints"


def generators(count: int, seed: int = 0) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed + each) for each in range(count)]


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> object:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def copies(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A shipped policy in a folder of its own, where a converted network may be kept."""
    folder = tmp_path_factory.mktemp("checkpoints")
    ignored = shutil.ignore_patterns("openvino-*")
    shutil.copytree(CHECKPOINTS / "tool_hang", folder / "tool_hang", ignore=ignored)
    return folder


@pytest.fixture(scope="module")
def policy(copies: Path) -> DiffusionPolicy:
    return DiffusionPolicy.from_pretrained(copies / "tool_hang")


def small(network: dict[str, object], **settings: object) -> DiffusionPolicy:
    torch.manual_seed(0)
    config = json.loads((CHECKPOINTS / "square" / "config.json").read_text())
    config |= {"network": network, "horizon": 8, "n_action_steps": 4, **settings}
    return DiffusionPolicy(PolicyConfig.from_dict(config)).eval().requires_grad_(False)


@pytest.mark.parametrize(
    "network",
    [
        {"name": "unet1d", "channels": [16, 32], "timestep_dim": 16},
        {"name": "unet1d", "channels": [16, 24, 32], "timestep_dim": 16},  # down to few positions
        {"name": "mlp", "width": 64, "blocks": 1, "octaves": 2},
        {"name": "transformer", "width": 16, "layers": 1, "heads": 2, "observation_steps": 2},
        {"name": "transformer", "width": 16, "layers": 1, "heads": 2, "encoder_layers": 1},
    ],
    ids=lambda network: str(network["name"]),
)
def test_all_networks_agree_with_torch(
    network: dict[str, object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    policy = small(network)
    fast, cond_dim = OpenVINODenoiser(policy), policy.observations.dim * policy.observations.horizon
    for rows in (1, 9, 66):  # as they are, filled up, and split
        x, cond = torch.randn(rows, *policy.event_shape), torch.randn(rows, cond_dim)
        timestep = torch.randint(0, 100, (rows,))
        wanted = policy(x, timestep, cond)
        torch.testing.assert_close(fast(x, timestep, cond), wanted, atol=1e-5, rtol=1e-5)
        with torch.no_grad():
            ahead = fast.prepare_condition(cond)
        torch.testing.assert_close(fast(x, timestep, ahead), wanted, atol=1e-5, rtol=1e-5)


def test_a_converted_network_is_kept_beside_its_checkpoint(tmp_path: Path) -> None:
    small({"name": "mlp", "width": 32, "blocks": 1}).save_pretrained(tmp_path)
    policy, before = DiffusionPolicy.from_pretrained(tmp_path), checkpoint_digest(tmp_path)
    x, timestep, cond = torch.zeros(1, *policy.event_shape), torch.tensor([5]), torch.zeros(1, policy_cond(policy))
    wanted = OpenVINODenoiser(policy)(x, timestep, cond)
    (graph,) = tmp_path.glob("openvino-*.xml")
    written = graph.stat().st_mtime_ns
    torch.testing.assert_close(OpenVINODenoiser(policy)(x, timestep, cond), wanted, atol=0, rtol=0)
    assert graph.stat().st_mtime_ns == written  # read, not made anew
    assert checkpoint_digest(tmp_path) == before
    # Damaged, it is made anew; another network does not take it for its own.
    graph.write_text("<damaged")
    torch.testing.assert_close(OpenVINODenoiser(policy)(x, timestep, cond), wanted, atol=1e-6, rtol=1e-6)
    other = DiffusionPolicy.from_pretrained(tmp_path)
    with torch.no_grad():
        next(other.network.parameters()).mul_(1.5)
    torch.testing.assert_close(OpenVINODenoiser(other)(x, timestep, cond), other(x, timestep, cond), atol=1e-5, rtol=0)


def test_converting_reports_nothing_and_forks_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    forks: list[None] = []
    monkeypatch.setattr(os, "fork", lambda: forks.append(None))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("HOME", str(tmp_path))  # where it keeps who reports
    monkeypatch.delenv("CI", raising=False)
    policy = small({"name": "mlp", "width": 16, "blocks": 1})
    OpenVINODenoiser(policy)(
        torch.zeros(1, *policy.event_shape), torch.tensor([5]), torch.zeros(1, policy_cond(policy))
    )
    telemetry = pytest.importorskip("openvino_telemetry")
    assert telemetry.Telemetry().consent is False and "CI" not in os.environ
    assert not forks and not (tmp_path / "intel").exists()


def policy_cond(policy: DiffusionPolicy) -> int:
    return policy.observations.dim * policy.observations.horizon


@pytest.mark.parametrize("name", ["ddpm20", "ddim5", "recycled20", "free_adaptive"])
def test_samplers_of_all_kinds_act_as_in_torch(policy: DiffusionPolicy, name: str) -> None:
    eager = samplers.load(name, policy)
    fast = specpolicy.compile_sampler(eager, "openvino")
    assert (fast.exact, isinstance(fast, RuntimeSampler)) == (eager.exact, name in ("recycled20", "free_adaptive"))
    observation = policy.observations.zeros(3)
    wanted = policy.predict_action(observation, eager, generators(3))
    got = policy.predict_action(observation, fast, generators(3))
    np.testing.assert_allclose(got.prediction, wanted.prediction, atol=2e-4)
    assert torch.equal(got.result.passes, wanted.result.passes)


def test_chains_in_arrays_are_the_network_called_with_tensors(policy: DiffusionPolicy) -> None:
    """Two chains in turn on the same models, and a batch of tensors between them: each keeps its own condition."""
    fast, rng = OpenVINODenoiser(policy), np.random.default_rng(0)
    conds = torch.randn(2, policy_cond(policy), generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        chains = [fast.for_chain(policy.event_shape, cond[None]) for cond in conds]
        for rows in (3, 1, 70, 3):
            states, timesteps = rng.normal(size=(rows, int(np.prod(policy.event_shape)))), np.arange(rows) % 100
            x, timestep = torch.from_numpy(states).float().view(rows, *policy.event_shape), torch.from_numpy(timesteps)
            for chain, cond in zip(chains, conds, strict=True):
                wanted = policy(x, timestep, cond.expand(rows, -1))
                torch.testing.assert_close(torch.from_numpy(chain(states, timesteps)), wanted, atol=1e-5, rtol=1e-5)
            fast(x, timestep, fast.prepare_condition(torch.zeros(rows, policy_cond(policy))))


def test_plain_and_prepared_conditions_are_kept_side_by_side(tmp_path: Path) -> None:
    small({"name": "mlp", "width": 32, "blocks": 1}).save_pretrained(tmp_path)
    policy = DiffusionPolicy.from_pretrained(tmp_path)
    x, timestep, cond = torch.zeros(1, *policy.event_shape), torch.tensor([5]), torch.zeros(1, policy_cond(policy))
    with torch.inference_mode():
        for each in (cond, policy.prepare_condition(cond), cond):
            OpenVINODenoiser(policy)(x, timestep, each)
    assert len(list(tmp_path.glob("openvino-*.xml"))) == 2


def test_the_innovations_of_chains_one_by_one(policy: DiffusionPolicy) -> None:
    """The rounds in NumPy on OpenVINO, as a robot calls them."""
    fast = specpolicy.compile_sampler(samplers.load("recycled20", policy), "openvino")
    with np.load(ROOT / "benchmarks" / "results" / "tool_hang" / "observations.npz") as arrays:
        chains = 150
        observations = {name: np.resize(arrays[name], (chains, *arrays[name].shape[1:])) for name in arrays.files}
    generator = torch.Generator().manual_seed(3)
    with torch.inference_mode():
        cond = policy.encode(observations)
        noise = torch.randn(chains, 1, *policy.event_shape, generator=generator)
        results = [fast(policy, x, cond[row][None], generator, record=True) for row, x in enumerate(noise)]
    assert sum(int(each.passes) for each in results) < 10 * chains
    together = SampleResult(
        *(torch.cat([getattr(each, name) for each in results]) for name in ("sample", "passes", "evaluations")),
        trajectory=torch.cat([each.trajectory for each in results if each.trajectory is not None], dim=1),
        x0=torch.cat([each.x0 for each in results if each.x0 is not None], dim=1),
    )
    assert check_exactness(fast.process, together).smallest > 1e-3


def test_predrafts_are_finished(policy: DiffusionPolicy) -> None:
    eager = samplers.load("recycled20", policy)
    fast = specpolicy.compile_sampler(eager, "openvino")
    results = []
    for sampler in (eager, fast):
        draft = policy.predraft(policy.observations.zeros(1), sampler, generators(1))
        results.append(policy.predict_action(policy.observations.zeros(1), sampler, generators(1, 9), predraft=draft))
    np.testing.assert_allclose(results[1].actions, results[0].actions, atol=2e-4)


def test_warm_up_leaves_nothing_to_compile(policy: DiffusionPolicy) -> None:
    fast = samplers.compiled(policy, lambda each: SpeculativeSampler(
        samplers.make_process(each, 10), FreeDrafter(), window=3, replay=4
    ), "openvino", [1, 2])  # fmt: skip
    network = fast.network(policy)
    known = set(network._models)
    assert {size for _, size, _ in known} >= set(BATCH_SIZES[: BATCH_SIZES.index(bucket(8)) + 1])
    for batch in (1, 2):
        policy.predict_action(policy.observations.zeros(batch), fast, generators(batch))
    assert set(network._models) == known
    # Another sampler of the same policy takes the same models.
    assert specpolicy.compile_sampler(samplers.load("ddim5", policy), "openvino").network(policy) is network
    torch.set_num_threads(2)
    policy.predict_action(policy.observations.zeros(1), fast, generators(1))
    torch.set_num_threads(1)
    assert {threads for *_, threads in network._models} == {1, 2}


def test_the_innovations_on_a_shipped_policy(policy: DiffusionPolicy) -> None:
    """Exact for the network as OpenVINO computes it: x̂0 of the test is evaluated there, row by row."""
    fast = specpolicy.compile_sampler(samplers.load("recycled20", policy), "openvino")
    with np.load(ROOT / "benchmarks" / "results" / "tool_hang" / "observations.npz") as arrays:
        chains = 240
        observations = {name: np.resize(arrays[name], (chains, *arrays[name].shape[1:])) for name in arrays.files}
    with torch.inference_mode():
        cond = policy.encode(observations)
        noise = torch.randn(chains, *policy.event_shape, generator=torch.Generator().manual_seed(1))
        result = fast(policy, noise, cond=cond, generator=torch.Generator().manual_seed(2), record=True)
        assert check_exactness(fast.process, result).smallest > 1e-3
        assert result.trajectory is not None and result.x0 is not None
        # The recorded x̂0 are the torch network's, up to rounding.
        for k in (0, 10, 19):
            output = policy(result.trajectory[k], fast.process.timesteps[k].expand(chains), cond)
            step = torch.full((chains,), k)
            x0 = fast.process.to(torch.device("cpu"), torch.float32).x0(result.trajectory[k], output, step)
            torch.testing.assert_close(x0, result.x0[k], atol=2e-4, rtol=0)


class Broken(nn.Module):
    """Decides by a number, which a trace does not show."""

    def forward(self, x: Tensor, timestep: Tensor, cond: Tensor) -> Tensor:
        return 2 * x if bool(x.sum() > 0) else x


def test_refusals_are_one_line(policy: DiffusionPolicy, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    x, timestep, cond = torch.ones(1, 2), torch.zeros(1, dtype=torch.long), torch.zeros(1, 2)
    wrong = OpenVINODenoiser(Broken())
    wrong(x, timestep, cond)
    with pytest.raises(ConversionError, match="computes something else in OpenVINO than in PyTorch"):
        wrong(-torch.ones(2, 2), torch.zeros(2, dtype=torch.long), torch.zeros(2, 2))
    with pytest.raises(ConversionError, match=r"cannot be converted: .*; take compile=inductor"):
        OpenVINODenoiser(lambda x, timestep, cond: torch.linalg.lstsq(x, x)[0])(x, timestep, cond)
    with pytest.raises(ConversionError, match=r"takes torch\.float64"):
        OpenVINODenoiser(policy)(x.double(), timestep, cond)
    with pytest.raises(ConversionError, match="holds a str"):
        OpenVINODenoiser(lambda x, timestep, cond: x)(x, timestep, {"goal": "left"})
    with pytest.raises(ValueError, match="precision='bf16' is for backend='openvino'"):
        specpolicy.compile_sampler(SpeculativeSampler(samplers.make_process(policy, 10)), "plain", precision="bf16")
    with pytest.raises(ValueError, match="has no compiled form"):
        specpolicy.compile_sampler(object(), "openvino")


def test_adaptive_windows_and_bf16(policy: DiffusionPolicy) -> None:
    process = samplers.make_process(policy, 10)
    assert isinstance(
        specpolicy.compile_sampler(SpeculativeSampler(process, window=AdaptiveWindow()), "openvino"), RuntimeChain
    )
    reduced = specpolicy.compile_sampler(SpeculativeSampler(process, window=4), "openvino", precision="bf16")
    assert "bf16" in repr(reduced)
    try:
        network = reduced.network(policy)
    except ValueError as error:
        assert "does not compute in bfloat16" in str(error)
    else:
        x, timestep, cond = (
            torch.randn(2, *policy.event_shape),
            torch.tensor([50, 2]),
            torch.zeros(2, policy_cond(policy)),
        )
        difference = (network(x, timestep, cond) - policy(x, timestep, cond)).abs().max()
        assert 1e-5 < difference < 0.1


def test_commands_name_the_switch(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["rollout", "task=tool_hang", "sampler=[ddpm20]", "compile=inductor", "precision=bf16"]
    assert main(arguments) == EXIT_USER_ERROR
    assert "precision=bf16 is for compile=openvino, and compile=inductor here" in capsys.readouterr().err


def test_convolutions_over_few_positions_become_products(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    policy = small({"name": "unet1d", "channels": [16, 24, 32], "timestep_dim": 16})
    fast = OpenVINODenoiser(policy)
    inputs = torch.randn(2, *policy.event_shape), torch.tensor([3, 5]), torch.randn(2, policy_cond(policy))
    fast(*inputs)
    (converted,) = fast._converted.values()
    model = converted.clone()
    model.reshape({place: list(part.shape) for place, part in enumerate(inputs)})

    def short() -> list[int]:
        nodes = [node for node in model.get_ops() if node.get_type_name() == "Convolution"]
        return [node.input_value(0).get_shape()[2] for node in nodes if node.input_value(1).get_shape()[2] == 5]

    before = short()
    assert {2, 4, 8} == set(before)
    openvino_network.short_convolutions(model)
    assert short() == [length for length in before if length > 4]
