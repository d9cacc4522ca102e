"""``specpolicy calibrate``, the samplers that read what it wrote, and the shipped calibrations."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from calibration_fakes import sampler_of
from safetensors import safe_open

from specpolicy import LinearDrafter, ReverseProcess, SpeculativeSampler, ZeroGuess, samplers
from specpolicy.calibration.store import CalibrationError, load_calibration
from specpolicy.cli import EXIT_USER_ERROR, main
from specpolicy.policies.diffusion_policy import DiffusionPolicy
from specpolicy.policies.forward_model import forward_model_path, load_forward_model
from specpolicy.speculative.exactness import check_exactness
from specpolicy.speculative.initial_guess import LinearGuess
from specpolicy.speculative.linear_chain import max_draft_lengths
from specpolicy.speculative.verifiers import BlockVerifier
from specpolicy.tuning.store import load_acceptance, sampler_key

ROOT = Path(__file__).parents[2]


@pytest.fixture
def observations(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    np.savez(tmp_path / "o.npz", position=rng.normal(size=(20, 2, 2)), goal=rng.normal(size=(20, 2, 2)))
    return tmp_path / "o.npz"


def test_from_observations_to_a_sampler(
    checkpoint: Path, observations: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    policy = DiffusionPolicy.from_pretrained(checkpoint)
    with pytest.raises(CalibrationError, match=r"`specpolicy calibrate checkpoint=\S+ num_inference_steps=20`"):
        sampler_of("linear_block20", policy)
    job = [
        "calibrate", f"checkpoint={checkpoint}", f"observations={observations}", "num_inference_steps=20",
        "chains=60", f"out={tmp_path / 'rec'}",
    ]  # fmt: skip
    assert main(job) == 0
    said = capsys.readouterr().out
    assert "held out of 100" in said and "calibration-20.safetensors" in said and "lag 1: drafts are off by" in said
    about = load_calibration(checkpoint, 20).about
    assert about["observations"]["file"] == "o.npz" and {"packages", "git", "machine"} <= set(about["provenance"])
    assert str(tmp_path) not in str(about), "no paths of this machine"
    sampler = sampler_of("linear_block20", policy)
    assert isinstance(sampler, SpeculativeSampler) and isinstance(sampler.drafter, LinearDrafter) and sampler.exact
    recycled = sampler_of("recycled20", policy)
    profile = load_acceptance(sampler_key(recycled), max_draft_lengths(recycled.process), checkpoint)
    assert profile is not None and profile.longest == 19, "what windows are planned from"
    observation = {"position": np.zeros((3, 2, 2)), "goal": np.zeros((3, 2, 2))}
    chunk = policy.predict_action(observation, sampler, torch.Generator().manual_seed(0))
    assert chunk.actions.shape == (3, 8, 2) and np.isfinite(chunk.actions).all()


def test_the_initial_guess_can_be_chosen(checkpoint: Path) -> None:
    policy = DiffusionPolicy.from_pretrained(ROOT / "checkpoints" / "square")
    assert isinstance(sampler_of("linear_block20", policy, "sampler.initial_guess=zero").initial_guess, ZeroGuess)
    assert sampler_of("linear_block20", policy, "sampler.initial_guess=null").initial_guess is None
    with pytest.raises(ValueError, match="initial_guess='warm': expected one of fitted, zero"):
        samplers.calibrated(policy, 20, BlockVerifier(), 12, "warm")


def test_a_scheduler_or_an_unsaved_policy_will_not_do(checkpoint: Path) -> None:
    policy = DiffusionPolicy.from_pretrained(checkpoint)
    for source in (policy.scheduler, DiffusionPolicy(policy.config)):
        with pytest.raises(ValueError, match="loaded from one"):
            samplers.calibrated(source, 20, BlockVerifier(), 12)


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (["dataset=a.hdf5", "observations=b.npz"], "give one of them"),
        ([], "nothing says where observations of task 'reach' are"),
        (["observations=/nowhere.npz"], "cannot be read"),
        (["dataset=/nowhere.hdf5"], "no demonstrations at /nowhere.hdf5"),
        (["chains=0", "observations={observations}"], "chains=0"),
        (["num_inference_steps=0", "observations={observations}"], "num_inference_steps=0"),
    ],
)
def test_mistakes(
    checkpoint: Path, observations: Path, capsys: pytest.CaptureFixture[str], overrides: list[str], says: str
) -> None:
    filled = [each.format(observations=observations) for each in overrides]
    assert main(["calibrate", f"checkpoint={checkpoint}", *filled, f"out={checkpoint / 'rec'}"]) == EXIT_USER_ERROR
    error = capsys.readouterr().err
    assert error.startswith("error: ") and says in error and len(error.splitlines()) == 1


def test_from_demonstrations_to_a_forward_model(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    h5py = pytest.importorskip("h5py")
    rng, demos = np.random.default_rng(0), tmp_path / "demos.hdf5"
    with h5py.File(demos, "w") as file:
        for number in range(4):
            actions = rng.uniform(-1, 1, (30, 2))
            position = np.cumsum(0.05 * actions, axis=0) - 0.05 * actions
            for name, values in (
                ("actions", actions), ("obs/position", position), ("obs/goal", np.full((30, 2), number / 4))
            ):  # fmt: skip
                file.create_dataset(f"data/demo_{number}/{name}", data=values.astype(np.float32))
    job = [
        "calibrate", f"checkpoint={checkpoint}", "forward_model=true", f"dataset={demos}", "forward_model_steps=40",
        "threads=1", f"out={tmp_path / 'fit'}",
    ]  # fmt: skip
    assert main(job) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "mean error on held-out episodes: model, last value, linear extrapolation" in said
    assert "2 of 4 entries are predicted, the others stay" in said
    model = load_forward_model(checkpoint)
    guess = model({"position": np.zeros((2, 2)), "goal": np.ones((2, 2))}, 2, np.array([[1.0, -1.0], [1.0, 0.0]]))
    assert guess["position"][-1] == pytest.approx([0.1, -0.05], abs=0.02) and (guess["goal"] == 1).all()
    assert main([*job, "observations=x.npz"]) == EXIT_USER_ERROR
    assert "holds no actions" in capsys.readouterr().err
    image = [f"checkpoint={ROOT / 'checkpoints' / 'pusht_image'}", "forward_model=true"]
    assert main(["calibrate", *image]) == EXIT_USER_ERROR
    assert "looks at images (image); a forward model predicts vectors alone" in capsys.readouterr().err


@pytest.mark.parametrize("task", ["square", "pusht", "tool_hang", "transport"])
def test_shipped_forward_models_belong_to_their_checkpoints(task: str) -> None:
    model = load_forward_model(ROOT / "checkpoints" / task)
    path = forward_model_path(ROOT / "checkpoints" / task)
    assert model.gate.mean() > 0.7 and path.stat().st_size < 110_000
    with safe_open(path, "pt") as file:
        errors = json.loads(file.metadata()["forward_model"])["about"]["errors"]
    moving = [each for each in errors if each["name"].endswith(("eef_pos", "agent_pos"))]
    assert len(moving) >= 4 and all(each["model"] < min(each["last"], each["linear"]) for each in moving)


@pytest.mark.parametrize("task", ["square", "pusht", "tool_hang", "transport"])
@pytest.mark.parametrize("steps", [20, 100])
def test_shipped_calibrations_belong_to_their_checkpoints(task: str, steps: int) -> None:
    calibration = load_calibration(ROOT / "checkpoints" / task, steps)
    assert calibration.jacobian.num_steps == steps
    assert (ROOT / "checkpoints" / task / f"calibration-{steps}.safetensors").stat().st_size < 300_000
    held_out = calibration.about["held_out"]
    assert all(each["linear"] < 0.9 * each["free"] for each in held_out["distance"].values())
    assert held_out["initial_guess"][calibration.about["initial_guess"]] < 0.7 * held_out["initial_guess"]["zero"]
    if task in ("square", "pusht"):  # learned from people's demonstrations, whose observations are not ours to ship
        assert isinstance(calibration.initial_guess, LinearGuess)


def test_the_shipped_calibration_saves_passes_at_observations_that_it_has_not_seen_and_stays_exact() -> None:
    policy, results = DiffusionPolicy.from_pretrained(ROOT / "checkpoints" / "square"), {}
    with np.load(ROOT / "tests" / "policies" / "square_observations.npz") as arrays:
        observation = {name: arrays[name] for name in arrays.files}
    for name in ("free_block20", "linear_block20"):
        generator = torch.Generator().manual_seed(0)
        results[name] = policy.predict_action(observation, sampler_of(name, policy), generator, record=True).result
    passes = {name: float(result.passes.double().mean()) for name, result in results.items()}
    assert passes["linear_block20"] < 0.9 * passes["free_block20"]
    process = ReverseProcess.from_scheduler(policy.scheduler, 20)
    assert check_exactness(process, results["linear_block20"]).smallest > 1e-3
