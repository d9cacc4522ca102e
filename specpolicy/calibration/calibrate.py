"""Calibrates a policy: records chains, fits Jacobian and initial guess, stores them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from specpolicy.calibration.fit import RecordedChains, fit_calibration
from specpolicy.calibration.store import Calibration, CalibrationError, save_calibration
from specpolicy.calibration.x0_variance import load_x0_variance, measure_x0_variance, save_x0_variance, x0_variance_path
from specpolicy.policies.diffusion_policy import DiffusionPolicy
from specpolicy.speculative.inputs import seeded_generator
from specpolicy.speculative.process import ReverseProcess
from specpolicy.speculative.sampler import SequentialSampler
from specpolicy.utils.checks import check_integer
from specpolicy.utils.digests import checkpoint_digest, file_digest, source_digest
from specpolicy.utils.files import atomic_path, read_arrays
from specpolicy.utils.progress import progress_bar
from specpolicy.utils.run_identity import claim_folder

if TYPE_CHECKING:
    from specpolicy.datasets.demonstrations import Demonstration


@dataclass(frozen=True)
class ObservationSet:
    """Observation histories that a policy has met or may meet.

    Attributes:
        observations: raw units, joined as the policy joins them, images as their features, shape
            ``(n, n_obs_steps, dim)``.
        group: which episode each is of, shape ``(n,)``; each its own where that is not known.
        origin: where they come from, as plain JSON types; the same origin has the same histories.
    """

    observations: Float[NDArray[Any], "n steps dim"]
    group: Int[NDArray[Any], " n"]
    origin: dict[str, Any]

    def conditions(self, policy: DiffusionPolicy, which: Int[Tensor, " m"]) -> Float[Tensor, "m c"]:
        """Some of them as the network's conditions, with no action under way."""
        return policy.condition(torch.from_numpy(self.observations[which.numpy()]).float().to(policy.device))

    def named(self, policy: DiffusionPolicy, which: Int[NDArray[Any], " m"]) -> dict[str, NDArray[Any]]:
        """Some of them under the names that :meth:`DiffusionPolicy.act` knows them by."""
        keys = policy.config.observations
        parts = np.split(self.observations[which], np.cumsum(list(keys.values()))[:-1], axis=-1)
        return dict(zip(keys, parts, strict=True))


def observations_of_demonstrations(policy: DiffusionPolicy, path: str | Path) -> ObservationSet:
    """One history for each step of each episode; before an episode its first step is repeated.

    Args:
        policy: whose observations are looked for, under its own keys.
        path: a robomimic HDF5 file, or the folder of a LeRobotDataset v3.

    Raises:
        DemonstrationError: the file is missing, damaged or lacks what the policy looks at.
        ImportError: what reads it is missing; the message names the extra.
    """
    path = Path(path)
    episodes = demonstrations_for(policy, path)
    back = np.arange(1 - policy.config.n_obs_steps, 1)
    histories = [
        joined[(np.arange(len(joined))[:, None] + back).clip(min=0)]
        for joined in (_with_features(policy, episode) for episode in episodes)
    ]
    group = np.repeat(np.arange(len(histories)), [len(each) for each in histories])
    return ObservationSet(np.concatenate(histories), group, origin_of("demonstrations", path))


def demonstrations_for(policy: DiffusionPolicy, path: Path) -> Iterable[Demonstration]:
    """Read all demonstrations of a dataset as a policy observes them.

    Args:
        policy: whose observations are looked for, under its own keys.
        path: a robomimic HDF5 file, or the folder of a LeRobotDataset v3.

    Returns:
        The episodes.

    Raises:
        DemonstrationError: the file is missing, damaged or lacks what the policy looks at.
        ImportError: what reads it is missing; the message names the extra.
    """
    from specpolicy.datasets.demonstrations import ALL, read_demonstrations
    from specpolicy.datasets.lerobot import LeRobotDataset, is_lerobot_dataset

    spec, config = policy.observations, policy.config
    vectors = {key: dim for key, dim in spec.keys.items() if key not in spec.images}
    if is_lerobot_dataset(path):
        return LeRobotDataset(path).episodes(vectors, spec.images, config.env_action_dim)
    joined = {key: list(config.source.get("joined", {}).get(key, [key])) for key in vectors}
    if any(names != [key] for key, names in joined.items()):
        vectors = _lengths(path, joined, vectors)
    # robomimic files hold (H, W, C), whatever the policy wants
    turned = {key for key, shape in spec.images.items() if shape[0] == 3 and shape[-1] != 3}
    images = {key: (*shape[1:], shape[0]) if key in turned else shape for key, shape in spec.images.items()}
    found = read_demonstrations(path, vectors, 0, images, action_dim=config.action_dim, filter_key=ALL).train
    if not turned:
        return found
    return [
        replace(
            each,
            images={
                key: frames.transpose(0, 3, 1, 2) if key in turned else frames for key, frames in each.images.items()
            },
        )
        for each in found
    ]


def _lengths(path: Path, joined: Mapping[str, list[str]], expected: Mapping[str, int]) -> dict[str, int]:
    """The keys of a file that a policy's observation is joined from, with the lengths that they have there."""
    from specpolicy.datasets.robomimic import DemonstrationFile

    lengths: dict[str, int] = {}
    with DemonstrationFile(path) as file:
        first = file.names[0]
        for key, names in joined.items():
            parts = {name: file.read(first, f"obs/{name}").shape[-1] for name in names}
            if sum(parts.values()) != expected[key]:
                file.refuse(
                    f"data/{first}/obs", f"{key!r} is joined from {parts}, {sum(parts.values())} numbers; the policy "
                    f"expects {expected[key]}"
                )  # fmt: skip
            lengths |= parts
    return lengths


@torch.inference_mode()
def _with_features(policy: DiffusionPolicy, episode: Demonstration) -> NDArray[np.float32]:
    """The joined observations of an episode, each of its frames encoded once."""
    if not episode.images:
        return episode.observations
    encoders = policy.encoders
    features = {key: encoders.encode_frames(key, frames, policy.device) for key, frames in episode.images.items()}
    joined = policy.insert_features(torch.from_numpy(episode.observations).to(policy.device), features)
    array: NDArray[np.float32] = joined.cpu().numpy()
    return array


def observations_of_results(policy: DiffusionPolicy, path: str | Path) -> ObservationSet:
    """The histories that an evaluation left in ``observations.npz``.

    Raises:
        CalibrationError: the file is missing or no such archive.
        ObservationError: it lacks what the policy looks at.
    """
    path = Path(path)
    try:
        observations = read_arrays(path)
    except ValueError as error:
        raise CalibrationError(
            f"{path} cannot be read ({error}); expected an observations.npz as `specpolicy evaluate` leaves it"
        ) from error
    with torch.inference_mode():
        joined = policy.join(observations).cpu().numpy()
    return ObservationSet(joined, np.arange(len(joined)), origin_of("observations", path))


def origin_of(kind: str, path: Path) -> dict[str, Any]:
    """Name where data come from by their content.

    Args:
        kind: of data.
        path: a file, or the folder of a dataset.

    Returns:
        Kind, name and SHA-256.
    """
    if path.is_file():
        return {"kind": kind, "file": path.name, "sha256": file_digest(path)}
    files = sorted(each for each in path.rglob("*") if each.suffix in (".json", ".parquet", ".mp4") and each.is_file())
    lines = "".join(f"{file_digest(each)}  {each.relative_to(path).as_posix()}\n" for each in files)
    return {"kind": kind, "file": path.name, "sha256": hashlib.sha256(lines.encode()).hexdigest()}


PART = 50
"""Chains that share a network evaluation, a stream of random numbers and a file."""

RECORDING = "recording.json"


def record_chains(
    policy: DiffusionPolicy,
    process: ReverseProcess,
    histories: ObservationSet,
    folder: Path,
    *,
    chains: int,
    seed: int = 0,
    identity: dict[str, Any] | None = None,
) -> RecordedChains:
    """Sequential chains at histories drawn by lot, written into ``folder`` as they are made.

    What an earlier, interrupted call has written is not made again. More chains than an earlier call go on from its
    own.

    Args:
        policy: whose chains.
        process: of which steps.
        histories: to condition on. Without as many as chains, each is taken several times.
        folder: for the parts.
        chains: how many; rounded up to whole parts of 50.
        seed: of the lot and of the chains' noise.
        identity: what tells the policy from another one; kept to refuse parts of another one.

    Raises:
        OtherRunError: the folder holds parts of another policy, histories, seed or chain, or made by other code.
        CalibrationError: a part is damaged.
    """
    decides = {"steps": process.num_steps, "seed": seed, "origin": histories.origin, **(identity or {})}
    decides["source"] = source_digest("specpolicy.speculative", "specpolicy.policies")
    claim_folder(folder, decides, name=RECORDING, traces=["chains-*.safetensors"])
    parts = -(-chains // PART)
    order = _order(len(histories.observations), parts * PART, seed)
    files = [folder / f"chains-{part:05d}.safetensors" for part in range(parts)]
    done = [file.exists() for file in files]
    with progress_bar("recording chains", parts * PART, completed=sum(done) * PART) as bar:
        for part, file in enumerate(files):
            if done[part]:
                continue
            which = order[part * PART : (part + 1) * PART]
            recorded = _record(policy, process, histories, which, seeded_generator(seed * 100_003 + part))
            with atomic_path(file) as temporary:
                temporary.write_bytes(save(recorded))
            bar.advance(PART)
    return _joined([_read(file) for file in files])


def _record(
    policy: DiffusionPolicy,
    process: ReverseProcess,
    histories: ObservationSet,
    which: Int[Tensor, " n"],
    generator: torch.Generator,
) -> dict[str, Tensor]:
    cond = histories.conditions(policy, which)
    noise = torch.randn(len(which), *policy.event_shape, generator=generator).to(policy.device)
    result = SequentialSampler(process)(policy, noise, cond=cond, generator=generator, record=True)
    if result.trajectory is None or result.x0 is None:  # record=True gives both; for the type checker
        raise CalibrationError("the sampler recorded nothing")
    observed = cond if policy.prefix is None else cond[:, : -policy.prefix.width]  # what PrefixGuess hands on
    return {
        "states": result.trajectory.flatten(2).cpu(),
        "x0": result.x0.flatten(2).cpu(),
        "cond": observed.cpu(),
        "group": torch.from_numpy(histories.group)[which].long(),
    }


def _order(available: int, wanted: int, seed: int) -> Int[Tensor, " m"]:
    """Which history each chain gets: all in random order, again and again. A longer list begins as a shorter one."""
    rounds = -(-wanted // available)
    generator = seeded_generator(seed)
    return torch.cat([torch.randperm(available, generator=generator) for _ in range(rounds)])[:wanted]


def _read(file: Path) -> RecordedChains:
    try:
        return RecordedChains(**load_file(file))
    except (SafetensorError, TypeError) as error:
        raise CalibrationError(f"{file} is damaged ({error}); remove it and run the same command again") from error


def _joined(parts: list[RecordedChains]) -> RecordedChains:
    return RecordedChains(
        torch.cat([part.states for part in parts], dim=1),
        torch.cat([part.x0 for part in parts], dim=1),
        torch.cat([part.cond for part in parts]),
        torch.cat([part.group for part in parts]),
    )


def calibrate(
    policy: DiffusionPolicy,
    histories: ObservationSet,
    num_inference_steps: int,
    folder: Path,
    *,
    analytic: bool = False,
    chains: int = 800,
    seed: int = 0,
    provenance: Mapping[str, Any] | None = None,
) -> tuple[Calibration, Path]:
    """Calibrate a policy's drafter and keep the outcome beside its checkpoint.

    Args:
        policy: loaded from a checkpoint.
        histories: observations to record chains at; none that the policy is to be judged on.
        num_inference_steps: K.
        folder: for the recorded chains, so that an interrupted call can be gone on with.
        analytic: of the chain with analytic noise, see :class:`X0Variance`. Where the checkpoint does not know its
            x0_variance yet, as many of its longest chains are recorded first, and it is measured on them.
        chains: to record.
        seed: of the recording.
        provenance: kept in the file.

    Returns:
        The calibration, and where it was written.

    Raises:
        CalibrationError: the policy was not loaded from a folder, or ``folder`` holds other chains.
        ValueError: the number of steps or chains cannot be used.
    """
    if policy.folder is None:
        raise CalibrationError("the policy was not loaded from a checkpoint: save it first, and load it from there")
    check_integer("chains", chains)
    check_integer("seed", seed, 0)
    about = {"observations": histories.origin, "seed": seed, "provenance": dict(provenance or {})}
    identity: dict[str, Any] = {"checkpoint": checkpoint_digest(policy.folder)}
    record = partial(record_chains, policy, histories=histories, chains=chains, seed=seed)
    if not analytic:
        process = ReverseProcess.from_scheduler(policy.training_scheduler, num_inference_steps)
    else:
        if not x0_variance_path(policy.folder).is_file():
            full = ReverseProcess.from_scheduler(policy.training_scheduler, policy.num_train_timesteps)
            longest = record(process=full, folder=folder / "full", identity=identity)
            save_x0_variance(measure_x0_variance(full, longest, about), policy.folder)
        process = load_x0_variance(policy.folder).chain(policy.training_scheduler, num_inference_steps)
        identity |= {"timesteps": process.timesteps.tolist(), "sigma": process.sigma.tolist()}
    recorded = record(process=process, folder=folder, identity=identity)
    calibration = fit_calibration(process, recorded, about)
    return calibration, save_calibration(calibration, policy.folder, analytic)
