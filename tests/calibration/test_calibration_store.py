"""Calibrations beside their checkpoint: read as written, small, and refused for any other checkpoint."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from calibration_fakes import save_untrained
from safetensors import safe_open
from safetensors.torch import save_file

from specpolicy import LinearGuess, X0Guess, X0Jacobian, ZeroGuess
from specpolicy.calibration.fit import RecordedChains, rank_that_fits
from specpolicy.calibration.store import (
    Calibration,
    CalibrationError,
    calibration_path,
    load_calibration,
    save_calibration,
)
from specpolicy.utils.digests import checkpoint_digest


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    save_untrained(tmp_path / "checkpoint")
    return tmp_path / "checkpoint"


def halves(*shape: int) -> torch.Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(sum(shape))).half().float()


def calibration(initial_guess: X0Guess, basis: bool = True) -> Calibration:
    jacobian = X0Jacobian(halves(5, 3), halves(32, 3)) if basis else X0Jacobian(halves(5, 32))
    return Calibration(jacobian, initial_guess, {"chains": 7})


LINEAR = LinearGuess(torch.rand(32, 8), torch.rand(32))
GUESSES = [ZeroGuess(), LINEAR]


@pytest.mark.parametrize("basis", [True, False])
@pytest.mark.parametrize("initial_guess", GUESSES, ids=lambda each: type(each).__name__)
def test_what_is_written_is_read(checkpoint: Path, initial_guess: X0Guess, basis: bool) -> None:
    written = calibration(initial_guess, basis)
    path = save_calibration(written, checkpoint)
    assert path == calibration_path(checkpoint, 5) == checkpoint / "calibration-5.safetensors"
    read = load_calibration(checkpoint, 5)
    assert torch.equal(read.jacobian.values, written.jacobian.values) and read.jacobian.values.dtype == torch.float32
    assert (read.jacobian.basis is None) == (not basis)
    assert type(read.initial_guess) is type(initial_guess) and read.about["chains"] == 7
    x, cond = torch.zeros(4, 16, 2), torch.rand(4, 8)
    torch.testing.assert_close(read.initial_guess.x0(x, cond), initial_guess.x0(x, cond))


def test_a_calibration_leaves_the_checkpoint_what_it_is(checkpoint: Path) -> None:
    before = checkpoint_digest(checkpoint)
    save_calibration(calibration(ZeroGuess()), checkpoint)
    (checkpoint / "windows-cpu.json").write_text("{}")
    assert checkpoint_digest(checkpoint) == before
    (checkpoint / "config.json").write_text((checkpoint / "config.json").read_text() + " ")
    assert checkpoint_digest(checkpoint) != before


def test_other_weights_are_refused(checkpoint: Path) -> None:
    save_calibration(calibration(ZeroGuess()), checkpoint)
    policy = save_untrained(checkpoint)
    policy.action_normalizer.low.fill_(-0.5)
    policy.save_pretrained(checkpoint)
    with pytest.raises(CalibrationError, match=r"of another policy.*`specpolicy calibrate checkpoint=.* again"):
        load_calibration(checkpoint, 5)


def test_without_one_the_command_is_named(checkpoint: Path) -> None:
    save_calibration(calibration(ZeroGuess()), checkpoint)
    command = f"no calibration for 6 steps; run `specpolicy calibrate checkpoint={checkpoint} num_inference_steps=6`"
    with pytest.raises(CalibrationError, match=command):
        load_calibration(checkpoint, 6)


def test_damage_is_told(checkpoint: Path) -> None:
    path = save_calibration(calibration(ZeroGuess()), checkpoint)
    path.write_bytes(path.read_bytes()[:40])
    with pytest.raises(CalibrationError, match=r"calibration-5.safetensors cannot be read .*calibrate"):
        load_calibration(checkpoint, 5)


def test_an_initial_guess_of_ones_own_cannot_be_stored(checkpoint: Path) -> None:
    class Own(ZeroGuess.__base__):  # type: ignore[name-defined,misc]
        def x0(self, x: torch.Tensor, cond: object) -> torch.Tensor:
            return x

    with pytest.raises(TypeError, match="a Own cannot be stored"):
        save_calibration(calibration(Own()), checkpoint)


def test_the_file_is_small_also_for_large_policies(checkpoint: Path) -> None:
    """Two arms: 16 actions of 14 numbers, and two observation steps of 59."""
    steps, d, c = 100, 224, 118
    chains = RecordedChains(
        torch.zeros(steps + 1, 1, d), torch.zeros(steps, 1, d), torch.zeros(1, c), torch.zeros(1).long()
    )
    rank = rank_that_fits(chains)
    assert rank == d
    guess = LinearGuess(torch.rand(d, c), torch.rand(d))
    written = Calibration(X0Jacobian(torch.rand(steps, rank), torch.rand(d, rank)), guess)
    assert save_calibration(written, checkpoint).stat().st_size < 300_000


def test_the_jacobian_of_an_image_is_cut_to_what_fits() -> None:
    chains = RecordedChains(
        torch.zeros(101, 1, 3072), torch.zeros(100, 1, 3072), torch.zeros(1, 1), torch.zeros(1).long()
    )
    assert 1 <= rank_that_fits(chains) < 100


def damaged(name: str, value: float) -> Calibration:
    """A calibration with one bad number."""
    parts = {"values": halves(5, 3), "basis": halves(32, 3), "weight": torch.rand(32, 8), "offset": torch.rand(32)}
    parts[name].view(-1)[1] = value
    return Calibration(X0Jacobian(parts["values"], parts["basis"]), LinearGuess(parts["weight"], parts["offset"]))


BAD = [float("nan"), float("inf"), float("-inf")]


@pytest.mark.parametrize("value", BAD)
@pytest.mark.parametrize("name", ["values", "basis", "weight", "offset"])
def test_numbers_that_are_not_finite_are_neither_written_nor_read(
    checkpoint: Path, name: str, value: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(CalibrationError, match=rf"is not written: \w+\.{name} holds NaN or infinity"):
        save_calibration(damaged(name, value), checkpoint)
    assert not calibration_path(checkpoint, 5).exists()
    with monkeypatch.context() as patched:
        patched.setattr("specpolicy.calibration.store._check_numbers", lambda tensors: None)
        save_calibration(damaged(name, value), checkpoint)
    with pytest.raises(CalibrationError, match=rf"cannot be read \(\w+\.{name} holds NaN .*`specpolicy calibrate"):
        load_calibration(checkpoint, 5)


def test_a_jacobian_of_another_number_of_steps_is_refused(checkpoint: Path) -> None:
    path = save_calibration(calibration(ZeroGuess()), checkpoint)
    path.rename(calibration_path(checkpoint, 20))
    with pytest.raises(CalibrationError, match="it is for 5 steps"):
        load_calibration(checkpoint, 20)


@pytest.mark.parametrize(
    ("name", "values"),
    [("jacobian.basis", torch.tensor(1.0)), ("jacobian.basis", torch.ones(3)), ("jacobian.values", torch.tensor(1.0))],
)
def test_arrays_of_other_shapes_are_refused(checkpoint: Path, name: str, values: torch.Tensor) -> None:
    path = save_calibration(calibration(ZeroGuess()), checkpoint)
    with safe_open(path, framework="pt") as file:
        about, tensors = file.metadata(), {each: file.get_tensor(each) for each in file.keys()}  # noqa: SIM118
    save_file(tensors | {name: values}, path, about)
    with pytest.raises(CalibrationError, match="cannot be read"):
        load_calibration(checkpoint, 5)


def test_a_description_nested_too_deeply_is_damage(checkpoint: Path) -> None:
    path = save_calibration(calibration(ZeroGuess()), checkpoint)
    with safe_open(path, framework="pt") as file:
        name, tensors = next(iter(file.metadata())), {each: file.get_tensor(each) for each in file.keys()}  # noqa: SIM118
    save_file(tensors, path, {name: "[" * 100_000})
    with pytest.raises(CalibrationError, match="cannot be read"):
        load_calibration(checkpoint, 5)
