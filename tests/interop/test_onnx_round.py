"""A round without Python: the exported graph gives the sampler's own samples from the same random numbers."""

from __future__ import annotations

import importlib.util
import json
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

from specpolicy import (
    BlockVerifier,
    FreeDrafter,
    LinearGuess,
    RecyclingDrafter,
    ReflectionVerifier,
    ReverseProcess,
    SequentialSampler,
    SpeculativeSampler,
    X0Jacobian,
)
from specpolicy.cli import main
from specpolicy.interop.onnx_round import MANIFEST, ROUND, ExportError, export_round
from specpolicy.policies.config import PolicyConfig
from specpolicy.policies.diffusion_policy import DiffusionPolicy
from specpolicy.policies.normalizer import MinMaxNormalizer
from specpolicy.speculative.compiled.sampler import CompiledSampler

for module in ("onnx", "onnxruntime"):
    pytest.importorskip(module, reason=f"{module} is in the extra 'export'")

EXAMPLE = Path(__file__).parents[2] / "examples" / "run_without_torch.py"


def example() -> ModuleType:
    spec = importlib.util.spec_from_file_location("run_without_torch", EXAMPLE)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def policy(name: str = "mlp") -> DiffusionPolicy:
    torch.manual_seed(0)
    networks: dict[str, dict[str, Any]] = {
        "mlp": {"name": "mlp", "width": 24, "blocks": 1, "embed": 16, "timestep_dim": 8},
        "unet1d": {"name": "unet1d", "channels": (8, 16), "timestep_dim": 8, "groups": 4},
    }
    config = PolicyConfig(
        task="square", observations={"state": 5}, action_dim=2, n_obs_steps=2, horizon=4, n_action_steps=2,
        network=networks[name], scheduler={"num_train_timesteps": 40, "beta_schedule": "squaredcos_cap_v2"},
    )  # fmt: skip
    made = DiffusionPolicy(config).eval()
    made.observation_normalizer = MinMaxNormalizer(torch.linspace(-2, 0, 5), torch.linspace(1, 5, 5))
    made.action_normalizer = MinMaxNormalizer(torch.tensor([-3.0, 0.0]), torch.tensor([1.0, 8.0]))
    return made


def recycled(made: DiffusionPolicy, steps: int = 12, window: int = 4) -> SpeculativeSampler:
    process = ReverseProcess.from_scheduler(made.training_scheduler, steps)
    basis = torch.linalg.qr(torch.randn(8, 3, generator=torch.Generator().manual_seed(3))).Q
    jacobian = X0Jacobian(torch.rand(steps, 3, generator=torch.Generator().manual_seed(4)) * 0.5, basis)
    guess = LinearGuess(torch.randn(8, 10, generator=torch.Generator().manual_seed(5)) * 0.1, torch.zeros(8))
    return SpeculativeSampler(process, RecyclingDrafter(jacobian), ReflectionVerifier(), window, guess)


def samplers_own(made: DiffusionPolicy, sampler: SpeculativeSampler, cond: torch.Tensor, seed: int) -> Any:
    """The static rounds in PyTorch, of the one width that is exported."""
    width = int(sampler.table.max())
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn((1, *made.event_shape), generator=generator)
    return CompiledSampler(sampler, "plain", widths=[width])(made, noise, cond, generator)


def numbers_of(seed: int) -> tuple[Any, Any]:
    """The same stream of random numbers, for a host that knows no torch."""
    generator = torch.Generator().manual_seed(seed)
    return (
        lambda shape: torch.randn(tuple(shape), generator=generator).numpy(),
        lambda shape: torch.rand(tuple(shape), generator=generator, dtype=torch.float64).numpy(),
    )


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> tuple[DiffusionPolicy, SpeculativeSampler, Path]:
    made = policy()
    sampler = recycled(made)
    return made, sampler, export_round(made, sampler, tmp_path_factory.mktemp("round"))


def test_a_host_without_torch_gives_the_samplers_own_samples(
    exported: tuple[DiffusionPolicy, SpeculativeSampler, Path],
) -> None:
    made, sampler, folder = exported
    host, rejections = example().RoundPolicy(folder), 0
    for seed in range(4):
        cond = torch.rand((1, 10), generator=torch.Generator().manual_seed(seed)) * 2 - 1
        wanted = samplers_own(made, sampler, cond, seed)
        got = host.sample(cond.numpy(), *numbers_of(seed))
        np.testing.assert_allclose(got, wanted.sample.numpy(), rtol=1e-3, atol=1e-4)
        assert host.evaluations == int(wanted.passes)
        rejections += int((wanted.accepted < wanted.proposed).sum())
    assert rejections > 2, "repairs and recycled tails have been run"


def test_actions_come_in_the_environments_units(exported: tuple[DiffusionPolicy, SpeculativeSampler, Path]) -> None:
    made, sampler, folder = exported
    observation = np.linspace(-1, 2, 10, dtype=np.float32).reshape(2, 5)
    actions = example().RoundPolicy(folder).act(observation, *numbers_of(1))
    with torch.inference_mode():
        cond = made.encode({"state": observation[None]})
        wanted = made.decode(samplers_own(made, sampler, cond, 1).sample)[0]
    first = made.config.first_executed
    np.testing.assert_allclose(actions, wanted[first : first + 2], rtol=1e-3, atol=1e-3)


def test_a_unet_gives_its_own_samples_as_well(tmp_path: Path) -> None:
    made = policy("unet1d")
    sampler = recycled(made, 6, 3)
    host = example().RoundPolicy(export_round(made, sampler, tmp_path))
    cond = torch.rand((1, 10), generator=torch.Generator().manual_seed(0))
    wanted = samplers_own(made, sampler, cond, 2)
    np.testing.assert_allclose(host.sample(cond.numpy(), *numbers_of(2)), wanted.sample.numpy(), rtol=1e-3, atol=1e-4)


def test_a_graph_of_another_export_is_refused(
    exported: tuple[DiffusionPolicy, SpeculativeSampler, Path], tmp_path: Path
) -> None:
    (tmp_path / MANIFEST).write_text((exported[2] / MANIFEST).read_text())
    (tmp_path / ROUND).write_bytes((exported[2] / ROUND).read_bytes() + b"\0")
    with pytest.raises(ValueError, match="not of one export"):
        example().RoundPolicy(tmp_path)


def test_the_example_needs_neither_torch_nor_this_package() -> None:
    imports = [line for line in EXAMPLE.read_text().splitlines() if line.startswith(("import ", "from "))]
    allowed = {"hashlib", "json", "sys", "collections.abc", "pathlib", "numpy", "onnxruntime"}
    assert {line.split()[1] for line in imports} <= allowed <= {*allowed, *sys.stdlib_module_names}


def test_what_cannot_be_exported_is_told_with_what_can(tmp_path: Path) -> None:
    made = policy()
    process = recycled(made).process
    for sampler in (
        SequentialSampler(process),
        SpeculativeSampler(process, FreeDrafter(), BlockVerifier(), 5),
        SpeculativeSampler(process, FreeDrafter(), ReflectionVerifier(), 5),
    ):
        with pytest.raises(ExportError, match="can be exported: recycled, recycled20"):
            export_round(made, sampler, tmp_path / "none")
    with pytest.raises(ExportError, match=r"float32 on the CPU"):
        export_round(made.bfloat16(), recycled(made), tmp_path / "none")
    assert not (tmp_path / "none").exists()


def test_the_manifest_says_all_that_a_host_needs(exported: tuple[DiffusionPolicy, SpeculativeSampler, Path]) -> None:
    manifest = json.loads((exported[2] / MANIFEST).read_text())
    assert manifest["steps"] == 12 and manifest["window"] == 4 and len(manifest["timesteps"]) == 12
    assert set(manifest["inputs"]) == {"cond", "noise", "uniform", "fresh", *manifest["state"]}
    assert set(manifest["start"]) == set(manifest["state"]) - {"x", "last_eval_x"}
    assert {each.name for each in exported[2].iterdir()} == {ROUND, MANIFEST}


def test_the_command_asks_for_what_is_absent(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["export"]) == 2
    assert "specpolicy export PATH" in capsys.readouterr().err
    (tmp_path / "notes.txt").write_text("mine")
    assert main(["export", "checkpoints/square", f"out={tmp_path}"]) == 2
    assert "holds other files" in capsys.readouterr().err


HOST = EXAMPLE.with_name("run_without_python.cpp")


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The host in C++, as its head says how to build it."""
    compiler = shutil.which("g++")
    if compiler is None:
        pytest.skip("no g++ here")
    openvino = Path(pytest.importorskip("openvino", reason="openvino is in the extra 'openvino'").__path__[0])
    library = next(iter((openvino / "libs").glob("libopenvino.so.*")), None)
    if library is None or not (openvino / "include").is_dir():
        pytest.skip("this build of openvino has no C++ headers")
    program = tmp_path_factory.mktemp("host") / "host"
    search = [f"-I{openvino / 'include'}", str(library), f"-Wl,-rpath,{library.parent}"]
    subprocess.run([compiler, "-std=c++17", "-Wall", "-Werror", str(HOST), *search, "-o", str(program)], check=True)
    return program


def run_host(program: Path, *arguments: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([str(program), *map(str, arguments)], capture_output=True, text=True, check=False)


@pytest.mark.slow
def test_a_host_in_cpp_gives_the_same_actions(
    exported: tuple[DiffusionPolicy, SpeculativeSampler, Path], built: Path, tmp_path: Path
) -> None:
    host = example().RoundPolicy(exported[2])
    seen = host.manifest["observation"]
    resting = np.tile(np.array(seen["center"], np.float32), (seen["n_obs_steps"], 1))
    for seed in range(4):
        drawn: list[np.ndarray] = []

        def noted(draw: Any, drawn: list[np.ndarray] = drawn) -> Any:
            def call(shape: Any) -> np.ndarray:
                drawn.append(draw(shape))
                return drawn[-1]

            return call

        wanted = host.act(resting, *map(noted, numbers_of(seed)))
        np.concatenate([each.astype(np.float64).ravel() for each in drawn]).tofile(tmp_path / "numbers")
        found = run_host(built, exported[2], tmp_path / "numbers")
        assert found.returncode == 0, found.stderr
        got = np.array([[float(number) for number in line.split()] for line in found.stdout.splitlines()])
        np.testing.assert_allclose(got, wanted, rtol=1e-3, atol=1e-3)
        assert found.stderr.startswith(f"{host.evaluations} network evaluations for 12 denoising steps")


def test_the_host_in_cpp_draws_numbers_of_its_own_and_says_what_is_wrong(
    exported: tuple[DiffusionPolicy, SpeculativeSampler, Path], built: Path, tmp_path: Path
) -> None:
    once, again = (run_host(built, exported[2]) for _ in range(2))
    assert once.returncode == again.returncode == 0 and once.stdout != again.stdout
    np.zeros(9).tofile(tmp_path / "few")
    for arguments in ((), (exported[2], tmp_path / "few"), (tmp_path,)):
        failed = run_host(built, *arguments)
        assert failed.returncode == 1 and not failed.stdout and failed.stderr.strip()
    assert len(HOST.read_text().splitlines()) <= 120
