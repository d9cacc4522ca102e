"""Where commands that look at a policy's observations take them from."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.errors import InstantiationException
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from specpolicy.config import ConfigError, available, compose, parse_repeats, to_container
from specpolicy.utils.extras import require

if TYPE_CHECKING:
    from specpolicy.control.executors import Executor
    from specpolicy.evaluation.comparison import Comparison
    from specpolicy.rollout.env_worker import MakeViews
    from specpolicy.rollout.episodes import EpisodeKey


def tasks_with_checkpoint(command: str, overrides: Sequence[str]) -> list[str]:
    """The tasks that a command can be run on: those whose checkpoint is there."""
    tasks = {task: compose(command, [*overrides, f"task={task}"]).checkpoint for task in available("task")}
    there = [task for task, checkpoint in tasks.items() if (Path(checkpoint) / "config.json").is_file()]
    absent = [f"{task} ({checkpoint})" for task, checkpoint in tasks.items() if task not in there]
    if not there:
        raise ConfigError(f"no task has a checkpoint: {', '.join(absent)}; run `specpolicy train` first")
    if absent:
        logging.getLogger(__name__).info("left out for want of a checkpoint: %s", ", ".join(absent))
    return there


def composed(
    command: str, overrides: Sequence[str], samplers: Sequence[str] | None
) -> tuple[DictConfig, dict[str, Any]]:
    """The configuration of a command, and the recipe of each sampler."""
    configs = {name: compose(command, [*overrides, f"sampler={name}"]) for name in samplers or ["free_block"]}
    return next(iter(configs.values())), {name: recipe_of(cfg) for name, cfg in configs.items()}


def recipe_of(cfg: DictConfig, predrafts: bool = False) -> DictConfig:
    """The chosen sampler's configuration; inside that of its compiled twin, if ``compile`` names a backend."""
    if "compile" not in cfg:  # not all commands have the switch
        return cfg.sampler
    if cfg.precision is not None and cfg.compile != "openvino":
        raise ConfigError(f"precision={cfg.precision} is for compile=openvino, and compile={cfg.compile} here")
    if cfg.compile is None:
        return cfg.sampler
    return OmegaConf.create(
        {
            "_target_": "specpolicy.samplers.compiled",
            "_partial_": True,
            "sampler": to_container(cfg.sampler),
            "backend": cfg.compile,
            **({} if cfg.precision is None else {"precision": cfg.precision}),
            # Episodes come together or, when most have ended, in a batch that is filled up; latency is measured alone.
            "batches": sorted({1, cfg.get("num_envs", 1)}),
            "predrafts": predrafts,
        }
    )


def executor_with_settings(
    name: str, cfg: DictConfig, predictor: str | None = None
) -> tuple[str, tuple[Executor, dict[str, Any]]]:
    """Make the executor of a configuration, and say what decides what it does.

    Args:
        name: of the executor.
        cfg: holds its settings.
        predictor: name of the predictor of observations that was chosen.

    Returns:
        Its name, in which an executor that asks about predicted observations says so, as in
        ``"asynchronous (learned)"``; the executor; and its settings for the record, with the digest of a forward model.

    Raises:
        ConfigError: a predictor was chosen, and this executor takes none.
    """
    from specpolicy.utils.digests import noting_inputs

    with noting_inputs() as inputs:
        executor: Executor = instantiated(cfg.executor)
    settings: dict[str, Any] = to_container(cfg.executor)
    config = executor.config
    if settings.get("predictor", ...) is None:
        del settings["predictor"]  # the record of an executor that does not predict is what it was before any could
    if inputs:
        settings["inputs"] = dict(inputs)
    if predictor is not None and config.predictor is None and config.predraft is None:
        raise ConfigError(
            f"predictor={predictor}: executor {name!r} has no use for predicted observations; take asynchronous, "
            "ensembled or predrafting"
        )
    return name if config.predictor is None else f"{name} ({predictor or 'predicted'})", (executor, settings)


def instantiated(node: Any) -> Any:
    """Make the object that a configuration describes; what its constructor raises is raised here."""
    try:
        return instantiate(node)
    except InstantiationException as error:
        if isinstance(error.__cause__, Exception):
            raise error.__cause__ from None
        raise


def camera_images(cfg: DictConfig, policy: Any) -> dict[str, Any]:
    """Find the arguments of the task's environment that let it render what a camera policy looks at.

    Args:
        cfg: with a task, whose own observations need no argument.
        policy: with or without cameras.

    Returns:
        ``{"images": {name: shape}}``, or nothing.
    """
    spec = getattr(policy, "observations", None)
    wanted = {
        name: tuple(shape)
        for name, shape in getattr(spec, "images", {}).items()
        if name not in cfg.task.observations
    }  # fmt: skip
    return {"images": wanted} if wanted else {}


def recording_of(cfg: DictConfig, samplers: Sequence[str], rate_hz: float) -> MakeViews | None:
    """What records the episodes of a run, checked before anything is played.

    Args:
        cfg: with ``record``: a kind, whose data then lie in ``out``, or a path whose ending names the kind.
        samplers: names of all samplers or controllers of the run.
        rate_hz: ticks a second.

    Returns:
        A :class:`~specpolicy.datasets.rollouts.RolloutRecording`, which is to be assembled in the end, or what makes
        MCAP files; None without ``record``.

    Raises:
        ConfigError: ``record`` is neither a kind nor a path of one.
        ImportError: the kind's extra is missing.
        FileExistsError: something else is there.
    """
    if cfg.record is None:
        return None
    kinds = {"hdf5": "rollouts.hdf5", "lerobot": "lerobot", "mcap": "episodes.mcap"}
    path = Path(cfg.out) / kinds[cfg.record] if cfg.record in kinds else Path(str(cfg.record))
    if path.suffix == ".mcap":
        from specpolicy.datasets.rollouts import McapRecording

        require("mcap", "mcap")
        return McapRecording(path)
    if path.suffix not in ("", ".hdf5", ".h5"):
        raise ConfigError(
            f"record={cfg.record!r}; write hdf5, lerobot or mcap, a path that ends in .hdf5 or .mcap, or a folder"
        )
    from specpolicy.datasets.rollouts import RolloutRecording

    require("h5py", "train")  # of the parts, whatever they are joined to
    return RolloutRecording(path, tuple(samplers), cfg.task.name, rate_hz)


def finish_recording(recording: MakeViews | None, keys: Iterable[EpisodeKey]) -> None:
    """Join the recorded episodes into data sets, and say where they are."""
    from specpolicy.datasets.rollouts import RolloutRecording

    if isinstance(recording, RolloutRecording):
        for path in recording.assemble(sorted(keys)):
            logging.getLogger(__name__).info("recorded: %s", path)


def comparison_of(cfg: DictConfig, recipes: Mapping[str, Any], seeds: Sequence[int]) -> Comparison:
    """What a command's configuration asks to compare."""
    from specpolicy.evaluation.comparison import CheckpointLoader, Comparison
    from specpolicy.rollout.env_worker import MakeEnv

    task, checkpoint = cfg.task.name, str(cfg.checkpoint)
    makers = {name: instantiate(recipe) for name, recipe in recipes.items()}
    contestants = CheckpointLoader(checkpoint, task, makers, cfg.device).pinned()
    return Comparison(
        task=task,
        contestants=contestants,
        make_env=MakeEnv(cfg.task.env, camera_images(cfg, contestants().policy)),
        seeds=seeds,
        repeats=parse_repeats(to_container(cfg.repeats), list(recipes)),
        checkpoint=checkpoint,
        recipes={name: to_container(recipe) for name, recipe in recipes.items()},
        num_envs=cfg.num_envs,
        threads=cfg.threads or None,
        block_size=cfg.block_size,
        retry_crashed=cfg.retry_crashed,
        latency_calls=cfg.latency_calls,
        latency_threads=cfg.latency_threads or None,
        control_hz=cfg.task.control_hz,
        video=tuple(to_container(cfg.video)),
        margin=cfg.margin,
        anytime=cfg.anytime,
        make_views=recording_of(cfg, list(recipes), cfg.task.control_hz) if "record" in cfg else None,
    )


if TYPE_CHECKING:
    from specpolicy.calibration.calibrate import ObservationSet
    from specpolicy.policies.diffusion_policy import DiffusionPolicy


def histories_for(policy: DiffusionPolicy, dataset: str | None, observations: str | None) -> ObservationSet:
    """Those of a dataset or of an archive; of the demonstrations of the policy's task if neither is given.

    Raises:
        ConfigError: both are given, or neither and the task is none of this library's; or observations were left by
            an evaluation on sealed seeds.
        CalibrationError, DemonstrationError, ObservationError: the file is missing or does not fit.
    """
    from specpolicy.calibration.calibrate import observations_of_demonstrations, observations_of_results

    if dataset and observations:
        raise ConfigError("dataset= and observations= both say where observations are; give one of them")
    if observations:
        beside = Path(observations).with_name("manifest.json")
        if beside.exists():
            from specpolicy.evaluation.manifest import Manifest

            if Manifest.read(beside.parent).analysis.get("seeds") == "sealed":
                raise ConfigError(
                    f"observations={observations}: they are of sealed seeds, on which nothing is fitted or chosen; "
                    "take those of development seeds"
                )
        return observations_of_results(policy, observations)
    return observations_of_demonstrations(policy, dataset_for(policy, dataset, " or observations="))


def dataset_for(policy: DiffusionPolicy, dataset: str | None, otherwise: str = "") -> str:
    """Say where demonstrations are: where somebody said, or those of the policy's task.

    Args:
        policy: names the task.
        dataset: what was said.
        otherwise: what else may be given, for the message.

    Raises:
        ConfigError: nothing was said, and the task is none of this library's.
    """
    if not dataset and policy.config.task not in available("task"):
        raise ConfigError(
            f"nothing says where observations of task {policy.config.task!r} are; give dataset={otherwise}"
        )
    return dataset or str(compose("train", [f"task={policy.config.task}"]).dataset)
