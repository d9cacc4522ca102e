"""Recording, fitting and storing, in one go."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from specpolicy.policies import DiffusionPolicy
from specpolicy.policies.digest import checkpoint_digest
from specpolicy.speculative import ReverseProcess

from .calibration import Calibration, CalibrationError
from .fit import fit_calibration
from .recording import record_chains
from .sources import Histories
from .store import save_calibration
from .uncertainty import load_uncertainty, measure_uncertainty, save_uncertainty, uncertainty_path


def calibrate(
    policy: DiffusionPolicy,
    histories: Histories,
    num_inference_steps: int,
    folder: Path,
    *,
    matched: bool = False,
    chains: int = 800,
    seed: int = 0,
    most_centres: int | None = None,
    provenance: Mapping[str, Any] | None = None,
) -> tuple[Calibration, Path]:
    """Calibrate a policy's drafter and keep the outcome beside its checkpoint.

    Args:
        policy: loaded from a checkpoint.
        histories: observations to record chains at; none that the policy is to be judged on.
        num_inference_steps: K.
        folder: for the recorded chains, so that an interrupted call can be gone on with.
        matched: of the chain with matched noise, see :class:`Uncertainty`. Where the checkpoint does not know its
            uncertainty yet, as many of its longest chains are recorded first, and it is measured on them.
        chains: to record. seed: of the recording.
        most_centres: observations that the file may hold, see :func:`fit_calibration`; 0 where they must not go with
            the checkpoint.
        provenance: kept in the file.

    Returns:
        The calibration, and where it was written.

    Raises:
        CalibrationError: the policy was not loaded from a folder, or ``folder`` holds other chains.
        ValueError: the number of steps or chains cannot be used.
    """
    if policy.folder is None:
        raise CalibrationError("the policy was not loaded from a checkpoint: save it first, and load it from there")
    if chains < 1:
        raise ValueError(f"chains={chains}; record at least 1, better several hundred")
    about = {"observations": histories.origin, "seed": seed, "provenance": dict(provenance or {})}
    identity: dict[str, Any] = {"checkpoint": checkpoint_digest(policy.folder)}
    record = partial(record_chains, policy, histories=histories, chains=chains, seed=seed)
    if not matched:
        process = ReverseProcess.from_scheduler(policy.scheduler, num_inference_steps)
    else:
        if not uncertainty_path(policy.folder).is_file():
            full = ReverseProcess.from_scheduler(policy.scheduler, policy.scheduler.config.num_train_timesteps)
            longest = record(process=full, folder=folder / "full", identity=identity)
            save_uncertainty(measure_uncertainty(full, longest, about), policy.folder)
        process = load_uncertainty(policy.folder).chain(policy.scheduler, num_inference_steps)
        identity |= {"timesteps": process.timesteps.tolist(), "sigma": process.sigma.tolist()}
    recorded = record(process=process, folder=folder, identity=identity)
    calibration = fit_calibration(process, recorded, about, most_centres)
    return calibration, save_calibration(calibration, policy.folder, matched)
