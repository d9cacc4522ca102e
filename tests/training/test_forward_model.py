"""Forward models: recovering known dynamics, resuming, files and refusals."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from specpolicy.datasets.demonstrations import Demonstration
from specpolicy.datasets.robomimic import DemonstrationError
from specpolicy.policies.forward_model import (
    ForwardModel,
    ForwardModelError,
    forward_model_path,
    load_forward_model,
    save_forward_model,
)
from specpolicy.training.forward_model import SETTINGS, TransitionSet, fit_forward_model
from specpolicy.training.loop import TrainingDiverged
from specpolicy.utils.digests import checkpoint_digest, file_digest, noting_inputs

OBSERVATIONS = {"hand": 2, "flag": 1}
FAST = replace(SETTINGS, steps=60, save_every=30, warmup_steps=5, batch_size=64, threads=1)


def episode(seed: int, length: int = 60) -> Demonstration:
    """A hand that lags behind its commands, and a flag that turns when it will; commands are not what was played."""
    random = np.random.default_rng(seed)
    played = random.uniform(-1, 1, (length, 2)).astype(np.float32)
    hand, velocity, steps = random.uniform(-0.5, 0.5, 2), np.zeros(2), []
    flag = np.cumsum(random.random(length) < 0.03) % 2
    for action, flagged in zip(played, flag, strict=True):
        steps.append([*hand, float(flagged)])
        velocity = 0.6 * velocity + 0.02 * action
        hand = hand + velocity
    return Demonstration(str(seed), np.array(steps, np.float32), np.zeros_like(played), executed=played)


EPISODES = [episode(seed) for seed in range(20)]


@pytest.fixture(scope="module")
def fitted(tmp_path_factory: pytest.TempPathFactory) -> ForwardModel:
    folder = tmp_path_factory.mktemp("fit")
    return fit_forward_model(EPISODES, OBSERVATIONS, folder, FAST, {"demonstrations": "made up"}, width=8)[0]


def window(model: ForwardModel, which: Demonstration, tick: int, steps: int = 2) -> dict[str, np.ndarray]:
    rows = which.observations[tick - steps + 1 : tick + 1]
    return {"hand": rows[:, :2].astype(np.float64), "flag": rows[:, 2:], "other": np.arange(steps)}


def test_known_dynamics_are_recovered_and_what_cannot_be_predicted_stays(fitted: ForwardModel) -> None:
    unseen = episode(99)
    assert unseen.executed is not None
    for ahead in (1, 4, 6):
        seen = window(fitted, unseen, 20)
        guess = fitted(seen, ahead, unseen.executed[20 : 20 + ahead].astype(np.float64))
        truth = unseen.observations[[19 + ahead, 20 + ahead]]
        assert np.abs(guess["hand"] - truth[:, :2]).max() < 0.01
        assert np.abs(guess["hand"] - truth[:, :2]).max() < np.abs(seen["hand"] - truth[:, :2]).max() / 3
        assert {name: (part.dtype, part.shape) for name, part in guess.items()} == {
            name: (part.dtype, part.shape) for name, part in seen.items()
        }
        np.testing.assert_array_equal(guess["other"], seen["other"])
    assert fitted.gate.tolist() == [1, 1, 0]
    assert (guess["flag"] == seen["flag"][-1]).all()


def test_errors_are_those_of_held_out_episodes(tmp_path: Path) -> None:
    _, errors = fit_forward_model(EPISODES, OBSERVATIONS, tmp_path, FAST, {}, width=8)
    hand = {each.ahead: each for each in errors if each.name == "hand"}
    assert set(hand) == {1, 2, 4, 8}
    assert all(each.model < 0.5 * min(each.last, each.linear) for each in hand.values())
    moved = [
        np.sort(np.abs(each.observations[5:53, :2] - each.observations[1:49, :2]), axis=None) for each in EPISODES[-2:]
    ]
    assert hand[4].last == pytest.approx(np.concatenate(moved).mean(), rel=0.15)


def test_unrolling_is_what_the_formula_says() -> None:
    torch.manual_seed(3)
    model = ForwardModel({"x": 2}, 1, width=3)
    model.scale.copy_(torch.tensor([0.1, 0.2]))
    model.gate.copy_(torch.tensor([1.0, 0.0]))
    previous, present = torch.tensor([0.1, 0.2]), torch.tensor([0.15, 0.1])
    for action in torch.tensor([[0.3], [-0.7]]):
        z = torch.cat([present, (present - previous) / model.scale, action])
        change = torch.tensor([1.0, 0.0]) * model.scale * (model.affine(z) + model.network(z))
        previous, present = present, present + change
    given = {"x": np.array([[0.1, 0.2], [0.15, 0.1]], np.float32)}
    guess = model(given, 2, np.array([[0.3], [-0.7]]))["x"]
    np.testing.assert_allclose(guess[1], present.detach().numpy(), rtol=1e-5)
    np.testing.assert_allclose(guess[0], previous.detach().numpy(), rtol=1e-5)
    longer = model(given, 5, np.array([[0.3], [-0.7]]))["x"]
    np.testing.assert_array_equal(longer, [guess[1], guess[1]]), "without actions nothing is taken to change"


def test_a_policy_of_one_step_or_three_gets_as_many(fitted: ForwardModel) -> None:
    one, three = (fitted(window(fitted, EPISODES[0], 20, n), 1, np.zeros((1, 2))) for n in (1, 3))
    assert one["hand"].shape == (1, 2) and three["hand"].shape == (3, 2)
    np.testing.assert_allclose(three["hand"][:2], EPISODES[0].observations[[19, 20], :2], atol=1e-6)


def test_stretches_do_not_cross_episodes_and_take_what_was_played() -> None:
    first, second = episode(1, 6), episode(2, 7)
    data = TransitionSet.cut([first, second], 3)
    assert len(data.starts) == 3 + 4
    steps, actions = data.stretches(torch.arange(7), 3)
    assert first.executed is not None and second.executed is not None
    np.testing.assert_array_equal(steps[0], first.observations[[0, 0, 1, 2, 3]])
    np.testing.assert_array_equal(steps[2], first.observations[1:6])
    np.testing.assert_array_equal(actions[2], first.executed[2:5])
    np.testing.assert_array_equal(steps[3], second.observations[[0, 0, 1, 2, 3]])
    np.testing.assert_array_equal(actions[6], second.executed[3:6])


def test_an_interrupted_training_gives_the_same_model(fitted: ForwardModel, tmp_path: Path) -> None:
    identity = {"demonstrations": "made up"}
    broken = [*EPISODES[:-2], *(replace(each, observations=each.observations * np.nan) for each in EPISODES[-2:])]
    with pytest.raises(TrainingDiverged):  # at the first validation: nothing is saved before
        fit_forward_model(broken, OBSERVATIONS, tmp_path / "a", FAST, identity, width=8)
    again, _ = fit_forward_model(EPISODES, OBSERVATIONS, tmp_path / "b", FAST, identity, width=8)
    resumed, _ = fit_forward_model(EPISODES, OBSERVATIONS, tmp_path / "b", FAST, identity, width=8)
    for model in (again, resumed):
        for name, value in fitted.state_dict().items():
            torch.testing.assert_close(model.state_dict()[name], value, rtol=0, atol=0)


def test_what_is_stored_is_read_back_and_noted(fitted: ForwardModel, tmp_path: Path) -> None:
    path = forward_model_path(tmp_path)
    save_forward_model(fitted, path, {"seed": 0})
    with noting_inputs() as inputs:
        read = load_forward_model(tmp_path)
    assert inputs == {"forward_model.safetensors": file_digest(path)}
    given, moves = window(fitted, EPISODES[0], 9), np.ones((3, 2))
    np.testing.assert_array_equal(read(given, 3, moves)["hand"], fitted(given, 3, moves)["hand"])
    (tmp_path / "config.json").write_text("{}")
    digest = checkpoint_digest(tmp_path)
    path.unlink()
    assert checkpoint_digest(tmp_path) == digest, "knowing more about a policy does not make it another"


def test_missing_damaged_and_other_files_are_refused_in_one_line(fitted: ForwardModel, tmp_path: Path) -> None:
    path = forward_model_path(tmp_path)

    def refusal() -> str:
        with pytest.raises(ForwardModelError) as caught:
            load_forward_model(tmp_path)
        text = str(caught.value)
        assert "\n" not in text and f"specpolicy calibrate checkpoint={tmp_path} forward_model=true" in text
        return text

    assert "has no forward model" in refusal()
    save_forward_model(fitted, path)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    assert "cannot be read" in refusal()
    path.write_bytes(whole[:-40] + bytes(40))
    assert "digest" in refusal()
    tensors = load_file_bytes(whole, tmp_path)
    save_file(tensors, path, {"forward_model": json.dumps({"format": 9}), "sha256": "x"})
    assert "format 9" in refusal()


def load_file_bytes(content: bytes, folder: Path) -> dict[str, torch.Tensor]:
    (folder / "copy.safetensors").write_bytes(content)
    return load_file(folder / "copy.safetensors")


def test_windows_actions_and_demonstrations_that_do_not_fit_are_refused(fitted: ForwardModel, tmp_path: Path) -> None:
    given = window(fitted, EPISODES[0], 9)
    with pytest.raises(ForwardModelError, match="'flag' is missing"):
        fitted({"hand": given["hand"]}, 1, np.zeros((1, 2)))
    with pytest.raises(ForwardModelError, match="'hand' has shape"):
        fitted({**given, "hand": np.zeros((2, 3))}, 1, np.zeros((1, 2)))
    with pytest.raises(ForwardModelError, match=r"actions of shape \(1, 3\)"):
        fitted(given, 1, np.zeros((1, 3)))
    with pytest.raises(DemonstrationError, match="1 demonstrations"):
        fit_forward_model(EPISODES[:1], OBSERVATIONS, tmp_path, FAST, {})
    with pytest.raises(DemonstrationError, match="longer than 4"):
        fit_forward_model([episode(0, 4), episode(1, 30)], OBSERVATIONS, tmp_path, FAST, {})
