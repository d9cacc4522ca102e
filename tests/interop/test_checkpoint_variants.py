"""Variants of the committed checkpoints: older formats, other options, and what the readers make of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from foreign_files import (
    FIXTURES,
    INPAINTING,
    LEROBOT,
    ROBOMIMIC,
    TRANSFORMER,
    change_tensors,
    changed_lerobot,
    changed_robomimic,
    changed_stanford,
)
from safetensors.torch import load_file

import specpolicy
from specpolicy.policies import DiffusionPolicy

REFERENCE = {name: np.load(FIXTURES / f"{name}.npz") for name in ("lerobot", "robomimic_image")}
OBSERVATION = {key[4:]: REFERENCE["lerobot"][key] for key in REFERENCE["lerobot"].files if key.startswith("obs/")}


def conditions(policy: DiffusionPolicy) -> np.ndarray:
    with torch.no_grad():
        return policy.encode(OBSERVATION).numpy()


# -- LeRobot ----------------------------------------------------------------------------------------------------------


def _with_buffers(folder: Path, **config_changes: Any) -> Path:
    """The folder as LeRobot 0.1 to 0.3 wrote it: statistics among the weights."""
    changed_lerobot(folder, config=lambda config: [config.pop("pretrained_revision"), config.update(config_changes)])
    statistics = load_file(next(folder.glob("policy_preprocessor_step*")))

    def add(weights: dict[str, torch.Tensor]) -> None:
        for group, key in (("normalize_inputs", "observation.state"), ("normalize_targets", "action"),
                           ("unnormalize_outputs", "action")):  # fmt: skip
            for name in ("min", "max"):
                weights[f"{group}.buffer_{key.replace('.', '_')}.{name}"] = statistics[f"{key}.{name}"].clone()

    change_tensors(folder / "model.safetensors", add)
    for file in folder.glob("policy_*"):
        file.unlink()
    return folder


def test_statistics_in_buffers(tmp_path: Path) -> None:
    policy = specpolicy.load_policy(_with_buffers(tmp_path / "s1"))
    assert "format S1" in policy.report()
    # older versions added 1e-8 to every range: visible in the coordinate that is constant, equal there in all rows
    np.testing.assert_allclose(conditions(policy), REFERENCE["lerobot"]["net/global_cond"], atol=1e-5)


def test_the_type_may_be_missing_in_may_2025(tmp_path: Path) -> None:
    folder = _with_buffers(tmp_path / "s1")
    values = json.loads((folder / "config.json").read_text())
    del values["type"]
    (folder / "config.json").write_text(json.dumps(values))
    assert "format S1" in specpolicy.load_policy(folder).report()


def test_the_format_of_2024(tmp_path: Path) -> None:
    folder = _with_buffers(tmp_path / "s0")
    new = json.loads((folder / "config.json").read_text())
    old = {
        k: v for k, v in new.items() if k not in ("type", "input_features", "output_features", "normalization_mapping")
    }
    old |= {
        "input_shapes": {key: entry["shape"] for key, entry in new["input_features"].items()},
        "output_shapes": {"action": new["output_features"]["action"]["shape"]},
        "input_normalization_modes": {"observation.state": "min_max"},
        "output_normalization_modes": {"action": "min_max"},
    }
    (folder / "config.json").write_text(json.dumps(old))
    policy = specpolicy.load_policy(folder)
    assert "format S0" in policy.report()
    np.testing.assert_allclose(conditions(policy), REFERENCE["lerobot"]["net/global_cond"], atol=1e-5)


def test_a_folder_of_a_training_run(tmp_path: Path) -> None:
    changed_lerobot(tmp_path / "000100" / "pretrained_model")
    (tmp_path / "000100" / "training_state").mkdir()
    policy = specpolicy.load_policy(tmp_path / "000100")
    np.testing.assert_allclose(conditions(policy), REFERENCE["lerobot"]["net/global_cond"], atol=1e-6)


def test_a_compiled_network(tmp_path: Path) -> None:
    def compiled(weights: dict[str, torch.Tensor]) -> None:
        for name in list(weights):
            weights[name.replace("diffusion.unet.", "diffusion.unet._orig_mod.")] = weights.pop(name)

    policy = specpolicy.load_policy(changed_lerobot(tmp_path / "c", weights=compiled))
    plain = specpolicy.load_policy(LEROBOT)
    assert all(
        torch.equal(a, b) for a, b in zip(policy.state_dict().values(), plain.state_dict().values(), strict=True)
    )


def test_renamed_observations(tmp_path: Path) -> None:
    def rename(values: dict[str, Any]) -> None:
        values["steps"][0]["config"]["rename_map"] = {"observation.qpos": "observation.state"}

    policy = specpolicy.load_policy(changed_lerobot(tmp_path / "r", preprocessor=rename))
    assert list(policy.config.observations) == ["observation.qpos", "observation.environment_state"]
    assert "renamed: observation.qpos is observation.state" in policy.report()
    named = {**OBSERVATION, "observation.qpos": OBSERVATION["observation.state"]}
    del named["observation.state"]
    with torch.no_grad():
        np.testing.assert_allclose(policy.encode(named), REFERENCE["lerobot"]["net/global_cond"], atol=1e-6)


@pytest.mark.parametrize(("mode", "low", "high"), [("QUANTILES", "q01", "q99"), ("QUANTILE10", "q10", "q90")])
def test_quantiles(tmp_path: Path, mode: str, low: str, high: str) -> None:
    def by_quantiles(values: dict[str, Any]) -> None:
        for step in values["steps"]:
            if "norm_map" in step["config"]:
                step["config"]["norm_map"]["STATE"] = mode

    def quantiles(tensors: dict[str, torch.Tensor]) -> None:
        tensors[f"observation.state.{low}"] = torch.arange(5.0) - 3
        tensors[f"observation.state.{high}"] = torch.arange(5.0) + 1

    policy = specpolicy.load_policy(changed_lerobot(tmp_path / "q", preprocessor=by_quantiles, statistics=quantiles))
    state = conditions(policy).reshape(1, 2, -1)[..., :5]
    np.testing.assert_allclose(state, (OBSERVATION["observation.state"] - np.arange(5) + 3) / 2 - 1, atol=1e-5)


def test_unused_inputs_and_unnormalized_ones_are_told(tmp_path: Path) -> None:
    def more(config: dict[str, Any]) -> None:
        config["input_features"]["observation.effort"] = {"type": "STATE", "shape": [2]}

    assert "observation.effort" in specpolicy.load_policy(changed_lerobot(tmp_path / "m", config=more)).report()


def test_missing_keys_have_the_defaults_of_their_time(tmp_path: Path) -> None:
    def old(config: dict[str, Any]) -> None:
        for key in ("horizon", "n_action_steps", "n_obs_steps", "n_groups", "noise_scheduler_type", "beta_schedule",
                    "num_train_timesteps", "clip_sample", "clip_sample_range", "prediction_type"):  # fmt: skip
            config.pop(key)

    config = specpolicy.load_policy(changed_lerobot(tmp_path / "d", config=old)).config
    assert (config.horizon, config.n_action_steps, config.n_obs_steps) == (16, 8, 2)
    assert config.scheduler["beta_schedule"] == "squaredcos_cap_v2"


# -- robomimic --------------------------------------------------------------------------------------------------------


def test_plain_weights_where_no_average_was_kept(tmp_path: Path) -> None:
    def plain(payload: dict[str, Any]) -> None:
        payload["model"]["nets"], payload["model"]["ema"] = payload["model"]["ema"], None
        payload["config"]["algo"]["ema"]["enabled"] = False

    policy = specpolicy.load_policy(changed_robomimic(tmp_path / "p.pth", plain))
    assert "model.nets" in policy.report()
    same = specpolicy.load_policy(ROBOMIMIC).state_dict()
    assert all(torch.equal(tensor, same[name]) for name, tensor in policy.state_dict().items())


def test_scalars_of_numpy_that_runs_with_rollouts_leave(tmp_path: Path) -> None:
    def rollouts(payload: dict[str, Any]) -> None:
        payload["variable_state"] = {"best_return": {"Square": np.float64(0.5)}, "best_success_rate": np.float32(1)}

    assert specpolicy.load_policy(changed_robomimic(tmp_path / "r.pth", rollouts)).config.action_dim == 7


def test_action_keys_in_the_order_of_the_configuration_and_rotations(tmp_path: Path) -> None:
    def keys(payload: dict[str, Any]) -> None:
        payload["shape_metadata"]["ac_dim"] = 7
        payload["action_normalization_stats"] = {
            "gripper": {"scale": [[2.0]], "offset": [[1.0]]},
            "rot": {"scale": [[1.0] * 6], "offset": [[0.0] * 6]},
        }
        payload["config"]["train"]["action_keys"] = ["rot", "gripper"]
        payload["config"]["train"]["action_config"] = {"rot": {"format": "rot_6d"}, "gripper": {}}

    policy = specpolicy.load_policy(changed_robomimic(tmp_path / "k.pth", keys))
    assert policy.config.rotations == [{"start": 0, "to": "axis_angle"}] and policy.config.env_action_dim == 4
    sample = torch.tensor([0.0, 2, 0, -1, 0, 0, 0.5]).expand(1, 16, 7)  # a quarter turn about z
    actions = policy.decode(sample)
    np.testing.assert_allclose(actions[0, 0], [0, 0, -np.pi / 2, 2], atol=1e-6)


def test_older_layouts_do_not_scale_actions(tmp_path: Path) -> None:
    policy = specpolicy.load_policy(
        changed_robomimic(tmp_path / "o.pth", lambda payload: payload.pop("action_normalization_stats"))
    )
    assert "older layout" in policy.report()
    sample = torch.randn(1, 16, 7)
    np.testing.assert_array_equal(policy.decode(sample), sample.numpy())


def test_the_observation_order_is_that_of_the_shapes(tmp_path: Path) -> None:
    def reverse(payload: dict[str, Any]) -> None:
        obs = payload["config"]["observation"]["modalities"]["obs"]
        obs["low_dim"], obs["rgb"] = obs["low_dim"][::-1], obs["rgb"][::-1]

    policy = specpolicy.load_policy(changed_robomimic(tmp_path / "o.pth", reverse))
    assert list(policy.config.observations) == sorted(policy.config.observations)


def test_few_steps_of_ddpm_are_reported_as_a_deviation(tmp_path: Path) -> None:
    def few(payload: dict[str, Any]) -> None:
        payload["config"]["algo"]["ddpm"]["num_inference_timesteps"] = 20

    policy = specpolicy.load_policy(changed_robomimic(tmp_path / "f.pth", few))
    assert policy.num_inference_steps == 20 and "0.11.1" in policy.report() and "corrected" in policy.report()


# -- diffusion_policy -------------------------------------------------------------------------------------------------


def test_unresolved_configurations(tmp_path: Path) -> None:
    """References are looked up; expressions are not evaluated, what they say is read off the weights."""

    def unresolve(payload: dict[str, Any]) -> None:
        cfg = payload["cfg"]
        cfg["policy"] |= {
            "horizon": "${horizon}",
            "n_obs_steps": "${policy_steps.n}",
            "n_action_steps": "${eval:'${n_action_steps}+${n_latency_steps}'}",
            "action_dim": "${action_dim}",
            "obs_dim": "${eval: __import__('os').system('touch /tmp/x') }",
        }
        cfg["policy_steps"] = {"n": "${n_obs_steps}"}
        cfg["n_latency_steps"] = 1

    policy = specpolicy.load_policy(changed_stanford(TRANSFORMER, tmp_path / "u.ckpt", unresolve))
    assert (policy.config.horizon, policy.config.n_obs_steps, policy.config.n_action_steps) == (16, 2, 9)
    assert "drops the first 1 executed actions" in policy.report()


def test_references_in_circles(tmp_path: Path) -> None:
    def circle(payload: dict[str, Any]) -> None:
        payload["cfg"]["policy"]["horizon"] = "${horizon}"
        payload["cfg"]["horizon"] = "${policy.horizon}"

    with pytest.raises(specpolicy.CheckpointError, match="horizon is missing"):
        specpolicy.load_policy(changed_stanford(TRANSFORMER, tmp_path / "c.ckpt", circle))


@pytest.mark.parametrize(("convention", "first"), [(True, 1), (False, 2), (None, 2)])
def test_the_first_executed_action_of_the_unet(tmp_path: Path, convention: bool | None, first: int) -> None:
    def change(payload: dict[str, Any]) -> None:
        del payload["cfg"]["policy"]["oa_step_convention"]
        if convention is not None:
            payload["cfg"]["policy"]["oa_step_convention"] = convention

    policy = specpolicy.load_policy(changed_stanford(INPAINTING, tmp_path / "f.ckpt", change))
    assert policy.config.first_executed == first and policy.config.n_action_steps == 8


def test_chunks_of_executed_actions_only(tmp_path: Path) -> None:
    def only(payload: dict[str, Any]) -> None:
        payload["cfg"]["policy"] |= {"pred_action_steps_only": True, "n_action_steps": 16}

    config = specpolicy.load_policy(changed_stanford(TRANSFORMER, tmp_path / "o.ckpt", only)).config
    assert (config.horizon, config.n_action_steps, config.first_executed) == (16, 16, 0)


def test_raw_weights_where_no_average_was_kept(tmp_path: Path) -> None:
    def raw(payload: dict[str, Any]) -> None:
        payload["cfg"]["training"]["use_ema"] = False
        del payload["state_dicts"]["ema_model"]

    report = specpolicy.load_policy(changed_stanford(TRANSFORMER, tmp_path / "r.ckpt", raw)).report()
    assert "state_dicts.model" in report and "moving average" not in report


def test_absolute_actions_are_left_as_the_policy_gives_them(tmp_path: Path) -> None:
    def absolute(payload: dict[str, Any]) -> None:
        payload["cfg"]["task"] |= {"abs_action": True, "obs_keys": ["object", "robot0_eef_pos"]}

    report = specpolicy.load_policy(changed_stanford(TRANSFORMER, tmp_path / "a.ckpt", absolute)).report()
    assert "6-D rotations" in report and "joined from object, robot0_eef_pos" in report


# -- all --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("source", [ROBOMIMIC, TRANSFORMER, INPAINTING, LEROBOT], ids=lambda path: path.name)
def test_every_exact_sampler_plays_what_was_loaded(source: Path) -> None:
    """Chunks of the default sampler have the package's shapes, for one history and for several, and reproducibly."""
    from specpolicy import samplers

    policy = specpolicy.load_policy(source)
    sampler = samplers.default(policy)
    assert sampler.process.num_steps == 100
    observation = policy.observations.zeros(3)
    chunk = policy.predict_action(observation, sampler, [torch.Generator().manual_seed(n) for n in range(3)])
    alone = policy.predict_action(
        {key: part[1:2] for key, part in observation.items()}, sampler, [torch.Generator().manual_seed(1)]
    )
    assert chunk.actions.shape == (3, policy.config.n_action_steps, policy.config.env_action_dim)
    np.testing.assert_allclose(chunk.actions[1], alone.actions[0], atol=1e-3, rtol=1e-3)
    assert chunk.result.passes.max() < 60


def test_what_is_found_out_lies_beside_a_foreign_checkpoint(tmp_path: Path) -> None:
    from specpolicy.policies.checkpoint import companion

    folder = changed_lerobot(tmp_path / "pretrained_model")
    assert companion(folder) == tmp_path / "pretrained_model.specpolicy"
    (tmp_path / "model.pth").write_bytes(ROBOMIMIC.read_bytes())
    assert companion(tmp_path / "model.pth") == tmp_path / "model.pth.specpolicy"
    specpolicy.load_policy(folder).save_pretrained(tmp_path / "ours")
    assert companion(tmp_path / "ours") == tmp_path / "ours"


@pytest.mark.slow
def test_a_foreign_policy_is_calibrated_without_touching_it(tmp_path: Path) -> None:
    """The default sampler takes the calibration that then lies beside it."""
    from specpolicy import samplers
    from specpolicy.cli import main

    folder = changed_lerobot(tmp_path / "pretrained_model")
    files = {file: file.read_bytes() for file in folder.iterdir()}
    spread = np.random.default_rng(0).normal(0, 0.2, (24, 1, 1))
    np.savez(tmp_path / "seen.npz", **{k: (v + spread).astype(np.float32) for k, v in OBSERVATION.items()})
    arguments = [
        f"checkpoint={folder}",
        f"observations={tmp_path / 'seen.npz'}",
        "chains=24",
        f"out={tmp_path / 'run'}",
    ]
    assert main(["calibrate", *arguments]) == 0
    assert {file: file.read_bytes() for file in folder.iterdir()} == files
    beside = sorted(file.name for file in (tmp_path / "pretrained_model.specpolicy").iterdir())
    assert beside == ["acceptance.json", "calibration-100.safetensors"]
    assert "Guess" in repr(samplers.default(specpolicy.load_policy(folder)))
