"""Recording: chains of the policy, in parts that survive an interruption and are told apart from others."""

from __future__ import annotations

import importlib
from pathlib import Path

import numpy as np
import pytest
import torch
from calibration_fakes import histories, save_untrained

from specpolicy import ReverseProcess
from specpolicy.calibration.calibrate import observations_of_demonstrations, observations_of_results, record_chains
from specpolicy.calibration.fit import RecordedChains
from specpolicy.calibration.store import CalibrationError
from specpolicy.policies.diffusion_policy import DiffusionPolicy
from specpolicy.policies.observations import ObservationError
from specpolicy.utils.run_identity import OtherRunError

# The package has a function of this name, which hides the module.
recording = importlib.import_module("specpolicy.calibration.calibrate")


@pytest.fixture
def policy(tmp_path: Path) -> DiffusionPolicy:
    return save_untrained(tmp_path / "checkpoint")


def record(policy: DiffusionPolicy, folder: Path, chains: int = 100, **changed: object) -> RecordedChains:
    arguments = {"chains": chains, "seed": 0, "identity": {"checkpoint": "x"}} | changed
    process = ReverseProcess.from_scheduler(policy.scheduler, 5)
    return record_chains(policy, process, histories(), folder, **arguments)  # type: ignore[arg-type]


def test_what_is_recorded_is_the_chain(policy: DiffusionPolicy, tmp_path: Path) -> None:
    chains, process = record(policy, tmp_path / "rec"), ReverseProcess.from_scheduler(policy.scheduler, 5)
    process = process.to("cpu", torch.float32)
    assert chains.states.shape == (6, 100, 32) and chains.x0.shape == (5, 100, 32) and chains.num_steps == 5
    rows = torch.full((100,), 2)
    x = chains.states[2].view(100, 16, 2)
    with torch.no_grad():
        again = process.x0(x, policy(x, process.timesteps[rows], chains.cond), rows)
    torch.testing.assert_close(chains.x0[2], again.flatten(1), rtol=1e-4, atol=1e-4)
    everything = policy.condition(torch.from_numpy(histories().observations))
    for cond, group in zip(chains.cond[:50:10], chains.group[:50:10], strict=True):
        which = (everything - cond).abs().sum(1).argmin()
        torch.testing.assert_close(everything[which], cond)
        assert int(which) // 3 == int(group)


def test_an_interrupted_recording_goes_on(
    policy: DiffusionPolicy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, made, real = record(policy, tmp_path / "whole"), [0], recording._record

    def counted(*arguments: object) -> dict[str, torch.Tensor]:
        made[0] += 1
        if made[0] == 2:
            raise KeyboardInterrupt
        return real(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(recording, "_record", counted)
    with pytest.raises(KeyboardInterrupt):
        record(policy, tmp_path / "cut")
    assert [file.name for file in (tmp_path / "cut").glob("*.safetensors")] == ["chains-00000.safetensors"]
    chains = record(policy, tmp_path / "cut")
    assert made[0] == 3, "the finished part is not made again"
    assert torch.equal(chains.states, whole.states) and torch.equal(chains.group, whole.group)
    longer = record(policy, tmp_path / "cut", chains=120)
    assert len(longer) == 150 and torch.equal(longer.states[:, :100], whole.states)


@pytest.mark.parametrize("changed", [{"seed": 1}, {"identity": {"checkpoint": "y"}}])
def test_another_recording_is_refused(policy: DiffusionPolicy, tmp_path: Path, changed: dict[str, object]) -> None:
    record(policy, tmp_path, chains=1)
    with pytest.raises(OtherRunError, match=r"(seed: 0 there, 1 now|checkpoint: .* there, 'y' now)"):
        record(policy, tmp_path, chains=1, **changed)


def test_a_damaged_part_is_named(policy: DiffusionPolicy, tmp_path: Path) -> None:
    record(policy, tmp_path, chains=1)
    (tmp_path / "chains-00000.safetensors").write_bytes(b"half of it")
    with pytest.raises(CalibrationError, match=r"chains-00000.safetensors is damaged.*remove it"):
        record(policy, tmp_path, chains=1)


def test_histories_of_demonstrations(policy: DiffusionPolicy, tmp_path: Path) -> None:
    h5py = pytest.importorskip("h5py")
    with h5py.File(tmp_path / "demos.hdf5", "w") as file:
        for episode, length in enumerate((3, 5)):
            group = file.create_group(f"data/demo_{episode}")
            group["actions"] = np.zeros((length, 2))
            for key in ("position", "goal"):
                group[f"obs/{key}"] = np.arange(length)[:, None] + np.array([[10.0 * episode, 0.0]])
    found = observations_of_demonstrations(policy, tmp_path / "demos.hdf5")
    assert found.observations.shape == (8, 2, 4) and found.group.tolist() == [0] * 3 + [1] * 5
    assert found.observations[:, :, 0].tolist() == [
        [0, 0], [0, 1], [1, 2], [10, 10], [10, 11], [11, 12], [12, 13], [13, 14],
    ]  # fmt: skip
    assert found.origin["file"] == "demos.hdf5" and len(found.origin["sha256"]) == 64


def test_histories_of_observations(policy: DiffusionPolicy, tmp_path: Path) -> None:
    path = tmp_path / "observations.npz"
    np.savez(path, position=np.ones((4, 2, 2)), goal=np.zeros((4, 2, 2)), further=np.zeros(3))
    found = observations_of_results(policy, path)
    assert found.observations.shape == (4, 2, 4) and found.group.tolist() == [0, 1, 2, 3]
    np.savez(path, position=np.ones((4, 2, 2)))
    with pytest.raises(ObservationError, match="lacks"):
        observations_of_results(policy, path)
    path.write_bytes(b"no archive")
    with pytest.raises(CalibrationError, match="expected an observations"):
        observations_of_results(policy, path)
    with pytest.raises(CalibrationError, match="cannot be read"):
        observations_of_results(policy, tmp_path / "nothing.npz")
