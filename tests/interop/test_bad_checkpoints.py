"""Files that must be refused: in one line that names file and field, and without running anything."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from foreign_files import (
    INPAINTING,
    LEROBOT,
    ROBOMIMIC,
    TRANSFORMER,
    Evaluated,
    Payload,
    archive,
    changed_lerobot,
    changed_robomimic,
    changed_stanford,
    pickled,
)

from specpolicy.interop.loading import read_foreign
from specpolicy.policies.checkpoint import CheckpointError


def refused(path: Path, *words: str) -> str:
    """Check that a path is refused in one line that begins with it and contains ``words``; return the line."""
    with pytest.raises(CheckpointError) as caught:
        read_foreign(path)
    line = str(caught.value)
    assert "\n" not in line and len(line) < 700
    assert line.removeprefix("no checkpoint at ").startswith(str(path))
    for word in words:
        assert word in line, line
    return line


# -- code in pickles --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [Payload, Evaluated])
@pytest.mark.parametrize("wrap", ["bare", "model", "beside a state dict"])
def test_calls_in_a_pickle_are_not_made(tmp_path: Path, kind: type, wrap: str) -> None:
    witness = tmp_path / "executed"
    program: Any = kind(witness)
    if wrap == "model":
        program = {"model": {"nets": program}, "config": "{}", "algo_name": "x", "shape_metadata": {}}
    elif wrap == "beside a state dict":
        program = {"cfg": {}, "state_dicts": {}, "pickles": {"epoch": program}}
    refused(archive(tmp_path / "bad.ckpt", pickled(program)), "refers to", "nothing was executed")
    assert not witness.exists()


def test_a_call_in_a_whole_archive_of_torch_is_not_made(tmp_path: Path) -> None:
    witness = tmp_path / "executed"
    torch.save({"model": {"weight": torch.ones(3)}, "extra": Payload(witness)}, tmp_path / "bad.pth")
    refused(tmp_path / "bad.pth", "system")
    assert not witness.exists()


@pytest.mark.parametrize(
    "name", ["dill._dill _create_function", "dill._dill _get_attr", "dill._dill _import_module", "builtins getattr",
             "torch.hub load", "numpy.testing._private.utils runstring", "omegaconf.resolvers oc.env"],
)  # fmt: skip
def test_other_names_of_known_packages_are_refused(tmp_path: Path, name: str) -> None:
    program = b"\x80\x02c" + name.replace(" ", "\n").encode() + b"\n."
    refused(archive(tmp_path / "bad.ckpt", program), name.replace(" ", "."))


def test_a_type_by_name_that_no_configuration_needs(tmp_path: Path) -> None:
    program = b"\x80\x02cdill._dill\n_load_type\nX\x08\x00\x00\x00CodeType\x85R."
    refused(archive(tmp_path / "bad.ckpt", program), "CodeType")


def test_newer_opcodes_are_refused(tmp_path: Path) -> None:
    import pickle

    witness = tmp_path / "executed"
    refused(archive(tmp_path / "bad.ckpt", pickle.dumps(Payload(witness), protocol=4)), "STACK_GLOBAL")
    assert not witness.exists()


def test_bare_pickles_and_workspace_snapshots_are_refused(tmp_path: Path) -> None:
    witness = tmp_path / "executed"
    (tmp_path / "latest.pkl").write_bytes(pickled(Payload(witness)))
    refused(tmp_path / "latest.pkl", ".pkl")
    name = b"diffusion_policy.workspace.train_diffusion_unet_hybrid_workspace\nTrainDiffusionUnetHybridWorkspace"
    archive(tmp_path / "snapshot.pkl", b"\x80\x02c" + name + b"\n)\x81.")
    refused(tmp_path / "snapshot.pkl", "snapshot", "latest.ckpt")
    assert not witness.exists()


# -- damaged containers -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("keep", [0, 3, 1000, 0.5, 0.99])
@pytest.mark.parametrize("source", [ROBOMIMIC, TRANSFORMER])
def test_truncated_archives(tmp_path: Path, source: Path, keep: float) -> None:
    content = source.read_bytes()
    (tmp_path / "cut.ckpt").write_bytes(content[: int(keep * len(content)) if 0 < keep < 1 else int(keep)])
    refused(tmp_path / "cut.ckpt")


def test_a_flipped_bit_is_noticed_wherever_it_is(tmp_path: Path) -> None:
    content = bytearray(TRANSFORMER.read_bytes())
    with zipfile.ZipFile(TRANSFORMER) as file:
        entries = [entry for entry in file.infolist() if entry.file_size > 1000]
    for entry in entries[::40]:
        at = entry.header_offset + 600
        changed = content.copy()
        changed[at] ^= 1
        (tmp_path / "tampered.ckpt").write_bytes(changed)
        refused(tmp_path / "tampered.ckpt", "checksum")


def test_compressed_archives_are_not_inflated(tmp_path: Path) -> None:
    refused(archive(tmp_path / "bomb.ckpt", b"\x80\x02}." + b"0" * 10_000_000, zipfile.ZIP_DEFLATED), "compressed")


def test_archives_of_something_else(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as file:
        file.writestr("hello", "world")
    refused(tmp_path / "x.zip", "0 data.pkl")
    refused(archive(tmp_path / "cut.pkl", b"\x80\x02}q\x00(X"), "no complete pickle")
    torch.save({"weight": torch.ones(2)}, tmp_path / "bare.pth")
    refused(tmp_path / "bare.pth", "bare state dict")
    torch.save([1, 2], tmp_path / "list.pth")
    refused(tmp_path / "list.pth", "holds a list")
    torch.save({"pytorch-lightning_version": "2", "state_dict": {}}, tmp_path / "lightning.ckpt")
    refused(tmp_path / "lightning.ckpt", "Lightning")
    refused(tmp_path / "nothing", "no such file")
    (tmp_path / "folder").mkdir()
    refused(tmp_path / "folder", "no checkpoint")


def test_a_tensor_that_claims_more_than_is_stored(tmp_path: Path) -> None:
    def enlarge(payload: dict[str, Any]) -> None:
        for name, tensor in payload["model"]["ema"].items():
            if name.endswith("final_conv.1.bias"):
                payload["model"]["ema"][name] = torch.zeros(1).expand(10**7)
            else:
                payload["model"]["ema"][name] = tensor

    refused(changed_robomimic(tmp_path / "bad.pth", enlarge), "final_conv.1.bias", "fewer numbers are stored")


# -- robomimic --------------------------------------------------------------------------------------------------------


def _set(*path: str, value: Any) -> Callable[[dict[str, Any]], None]:
    def change(values: dict[str, Any]) -> None:
        for step in path[:-1]:
            values = values[step]
        values[path[-1]] = value

    return change


def _drop(*path: str) -> Callable[[dict[str, Any]], None]:
    def change(values: dict[str, Any]) -> None:
        for step in path[:-1]:
            values = values[step]
        del values[path[-1]]

    return change


def _ema(payload: dict[str, Any], ending: str) -> str:
    return next(name for name in payload["model"]["ema"] if name.endswith(ending))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (_set("algo_name", value="bc"), ["algo_name", "'bc'"]),
        (_set("config", value="{"), ["config is no JSON"]),
        (_set("config", value="[1]"), ["config is a list"]),
        (_drop("config", "algo", "horizon", "action_horizon"), ["config.algo.horizon.action_horizon is missing"]),
        (_set("config", "algo", "horizon", "action_horizon", value=99), ["do not fit"]),
        (_set("config", "algo", "horizon", "prediction_horizon", value=15), ["15"]),
        (_set("config", "algo", "ddpm", "enabled", value=False), ["there is no chain"]),
        (_set("config", "algo", "ddpm", "beta_schedule", value="wild"), ["config.algo.ddpm.beta_schedule", "'wild'"]),
        (_set("config", "algo", "ddpm", "num_train_timesteps", value=1e400), ["num_train_timesteps"]),
        (_set("model", "ema", value=None), ["model.ema is missing"]),
        (_set("model", "ema", value={"decay": torch.ones(1)}), ["model.ema"]),
        (_set("model", value=[]), ["model is a list"]),
        (_set("shape_metadata", "ac_dim", value=6), ["ac_dim"]),
        (
            _set("config", "train", "hdf5_normalize_obs", value=True),
            ["obs_normalization_stats lacks robot0_gripper_qpos"],
        ),
        (
            _set("obs_normalization_stats", value={"robot0_eef_pos": {"offset": [[0.0] * 3], "scale": [[1.0] * 3]}}),
            ["obs_normalization_stats lacks robot0_gripper_qpos"],
        ),
        (_drop("shape_metadata", "all_shapes"), ["shape_metadata.all_shapes"]),
        (
            _set("config", "observation", "modalities", "obs", "low_dim", value=["lang_emb"]),
            ["lang_emb"],
        ),
        (_set("config", "observation", "modalities", "obs", "depth", value=["robot0_eef_pos"]), ["depth"]),
        (_set("config", "observation", "modalities", "goal", "low_dim", value=["robot0_eef_pos"]), ["goal"]),
        (
            _set("config", "observation", "encoder", "rgb", "core_class", value="VisualCoreLanguageConditioned"),
            ["core_class", "VisualCoreLanguageConditioned"],
        ),
        (
            _set("config", "observation", "encoder", "rgb", "core_kwargs", "backbone_class", value="MVPConv"),
            ["MVPConv"],
        ),
        (_set("action_normalization_stats", value={"other": {"scale": [[1.0]], "offset": [[0.0]]}}), ["'actions'"]),
        (
            _set("action_normalization_stats", "actions", "scale", value=[[float("nan")] * 7]),
            ["action_normalization_stats.actions", "NaN"],
        ),
        (_set("action_normalization_stats", "actions", "scale", value=[[0.0] * 7]), ["scale of zero"]),
        (
            _set("action_normalization_stats", "actions", "offset", value="x"),
            ["action_normalization_stats.actions.offset"],
        ),
    ],
)
def test_robomimic_fields(tmp_path: Path, change: Callable[[dict[str, Any]], None], words: list[str]) -> None:
    refused(changed_robomimic(tmp_path / "bad.pth", change), *words)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_robomimic_weights_that_are_not_finite(tmp_path: Path, value: float) -> None:
    def spoil(payload: dict[str, Any]) -> None:
        payload["model"]["ema"][_ema(payload, "final_conv.1.bias")] = torch.full((7,), value)

    refused(changed_robomimic(tmp_path / "bad.pth", spoil), "model.ema.", "final_conv.1.bias", "NaN or infinity")


def test_robomimic_weights_that_do_not_fit(tmp_path: Path) -> None:
    def reshape(payload: dict[str, Any]) -> None:
        payload["model"]["ema"][_ema(payload, "mid_modules.0.blocks.0.block.0.weight")] = torch.zeros(3, 4, 5)

    refused(changed_robomimic(tmp_path / "bad.pth", reshape), "mid_modules.0.blocks.0.block.0.weight", "(3, 4, 5)")

    def drop(payload: dict[str, Any]) -> None:
        for part in ("ema", "nets"):
            del payload["model"][part][
                _ema({"model": {"ema": payload["model"][part]}}, "mid_modules.0.cond_encoder.1.bias")
            ]

    refused(changed_robomimic(tmp_path / "cut.pth", drop), "mid_modules.0.cond_encoder.1.bias", "is missing")

    def split(payload: dict[str, Any]) -> None:
        payload["model"]["ema"][_ema(payload, "agentview_image.backbone.nets.0.bias")] = torch.zeros(64)

    refused(changed_robomimic(tmp_path / "split.pth", split), "should be the same tensor")


# -- diffusion_policy -------------------------------------------------------------------------------------------------

_POLICY = "diffusion_policy.policy."


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (_set("cfg", "policy", "_target_", value=_POLICY + "bet_lowdim_policy.BETLowdimPolicy"), ["BETLowdimPolicy"]),
        (_set("cfg", "policy", "_target_", value=_POLICY + "x.IbcDfoLowdimPolicy"), ["IbcDfoLowdimPolicy"]),
        (_set("cfg", "policy", "_target_", value=_POLICY + "x.RobomimicLowdimPolicy"), ["RobomimicLowdimPolicy"]),
        (_set("cfg", "policy", "_target_", value=_POLICY + "x.DiffusionUnetVideoPolicy"), ["video"]),
        (
            _set("cfg", "policy", "_target_", value=_POLICY + "x.DiffusionTransformerHybridImagePolicy"),
            ["transformers on images"],
        ),
        (_set("cfg", "policy", "_target_", value="diffusion_policy_3d.policy.dp3.DP3"), ["DP3"]),
        (_set("cfg", "policy", "_target_", value="os.system"), ["os.system"]),
        (_drop("cfg", "policy"), ["cfg.policy._target_ is missing"]),
        (_drop("state_dicts", "ema_model"), ["state_dicts.ema_model is missing"]),
        (_set("cfg", value=3), ["cfg is a int"]),
        (
            _set("cfg", "policy", "noise_scheduler", "_target_", value="diffusers.x.EulerDiscreteScheduler"),
            ["EulerDiscreteScheduler"],
        ),
        (_set("cfg", "policy", "noise_scheduler", "variance_type", value="learned"), ["variance_type"]),
        (
            _set("cfg", "policy", "noise_scheduler", "beta_end", value=float("inf")),
            ["cfg.policy.noise_scheduler.beta_end"],
        ),
        (_set("cfg", "policy", "num_inference_steps", value=1000), ["num_inference_steps"]),
        (_set("cfg", "policy", "model", "n_head", value=5), ["n_head=5"]),
        (_set("cfg", "policy", "n_obs_steps", value=3), ["observation steps"]),
        (_set("cfg", "policy", "horizon", value=8), ["horizon"]),
        (
            _set(
                "state_dicts",
                "ema_model",
                "normalizer.params_dict.action.scale",
                value=torch.tensor([1.0, float("nan")]),
            ),
            ["normalizer.params_dict.action.scale", "NaN"],
        ),
        (
            _set("state_dicts", "ema_model", "normalizer.params_dict.action.scale", value=torch.zeros(2)),
            ["normalizer.params_dict.action"],
        ),
        (_set("state_dicts", "ema_model", "normalizer.params_dict.obs.scale", value=torch.ones(3)), ["3"]),
        (
            _drop("state_dicts", "ema_model", "normalizer.params_dict.obs.scale"),
            ["normalizer.params_dict.obs.scale is missing"],
        ),
        (_set("state_dicts", "ema_model", "model.mask", value=torch.zeros(16, 16)), ["model.mask"]),
        (_drop("state_dicts", "ema_model", "model.cond_pos_emb"), ["time_as_cond"]),
        (_set("state_dicts", "ema_model", "model.more", value=torch.zeros(1)), ["model.more"]),
    ],
)
def test_diffusion_policy_fields(tmp_path: Path, change: Callable[[dict[str, Any]], None], words: list[str]) -> None:
    refused(changed_stanford(TRANSFORMER, tmp_path / "bad.ckpt", change), *words)


def test_local_conditions_are_refused(tmp_path: Path) -> None:
    change = _set("cfg", "policy", "obs_as_local_cond", value=True)
    refused(changed_stanford(INPAINTING, tmp_path / "flag.ckpt", change), "obs_as_local_cond")
    change = _set("state_dicts", "ema_model", "model.local_cond_encoder.0.blocks.0.block.0.weight", value=torch.ones(1))
    refused(changed_stanford(INPAINTING, tmp_path / "weights.ckpt", change), "obs_as_local_cond")


# -- LeRobot ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (_set("type", value="act"), ["type is 'act'"]),
        (_set("horizon", value="16"), ["horizon is '16'"]),
        (_set("horizon", value=True), ["horizon is True"]),
        (_set("n_action_steps", value=17), ["do not fit"]),
        (_set("down_dims", value=[16, 64]), ["down_dims"]),
        (_set("n_groups", value=7), ["n_groups=7"]),
        (_set("noise_scheduler_type", value="EULER"), ["noise_scheduler_type"]),
        (_set("num_train_timesteps", value=0), ["num_train_timesteps"]),
        (_set("input_features", value={}), ["observation.state"]),
        (_set("use_peft", value=True), ["use_peft"]),
        (_drop("input_features"), ["input_features"]),
        (_set("input_features", "observation.state", value={"type": "STATE", "shape": [6]}), ["observation.state"]),
        (_set("output_features", "action", "shape", value=[5]), ["action"]),
    ],
)
def test_lerobot_configuration(tmp_path: Path, change: Callable[[dict[str, Any]], None], words: list[str]) -> None:
    refused(changed_lerobot(tmp_path / "bad", config=change), *words)


@pytest.mark.parametrize("name", ["../outside.safetensors", "/etc/passwd", "a/b.safetensors", "..", "", None, 3])
def test_paths_that_leave_the_folder(tmp_path: Path, name: Any) -> None:
    (tmp_path / "outside.safetensors").write_bytes(
        (LEROBOT / "policy_preprocessor_step_3_normalizer_processor.safetensors").read_bytes()
    )

    def point(values: dict[str, Any]) -> None:
        values["steps"][3]["state_file"] = name

    refused(changed_lerobot(tmp_path / "bad", preprocessor=point), "steps[3].state_file", "paths are refused")


def test_processors_that_are_not_known_are_not_run(tmp_path: Path) -> None:
    def by_class(values: dict[str, Any]) -> None:
        values["steps"].append({"class": "os.system", "config": {"command": "touch x"}})

    refused(changed_lerobot(tmp_path / "class", preprocessor=by_class), "steps[4]", "os.system")

    def unknown(values: dict[str, Any]) -> None:
        values["steps"].append({"registry_name": "relative_actions_processor", "config": {}})

    refused(changed_lerobot(tmp_path / "unknown", postprocessor=unknown), "relative_actions_processor")


@pytest.mark.parametrize("key", ["action.min", "action.max", "observation.state.max"])
@pytest.mark.parametrize("value", [None, float("nan"), float("inf")])
def test_lerobot_statistics(tmp_path: Path, key: str, value: float | None) -> None:
    def spoil(tensors: dict[str, torch.Tensor]) -> None:
        if value is None:
            del tensors[key]
        else:
            tensors[key] = torch.full_like(tensors[key], value)

    refused(changed_lerobot(tmp_path / "bad", statistics=spoil), key.rpartition(".")[0])


def test_lerobot_without_statistics_at_all(tmp_path: Path) -> None:
    folder = changed_lerobot(tmp_path / "bad")
    for file in folder.glob("policy_*"):
        file.unlink()
    refused(folder, "normalize", "is missing")
    folder = changed_lerobot(tmp_path / "half")
    (folder / "policy_postprocessor.json").unlink()
    refused(folder, "policy_postprocessor.json", "missing")
    folder = changed_lerobot(tmp_path / "file")
    next(folder.glob("policy_postprocessor_step*")).unlink()
    refused(folder, "is missing")


def test_lerobot_damaged_files(tmp_path: Path) -> None:
    folder = changed_lerobot(tmp_path / "cut")
    (folder / "model.safetensors").write_bytes((LEROBOT / "model.safetensors").read_bytes()[:100_000])
    refused(folder, "model.safetensors", "damaged or truncated")

    folder = changed_lerobot(
        tmp_path / "nan", weights=lambda w: w["diffusion.unet.final_conv.1.bias"].fill_(float("nan"))
    )
    refused(folder, "diffusion.unet.final_conv.1.bias", "NaN")

    folder = changed_lerobot(tmp_path / "deep")
    (folder / "config.json").write_text("[" * 100_000)
    refused(folder, "config.json")
    (folder / "config.json").write_text(json.dumps({"type": "diffusion", "horizon": float("nan")}))
    refused(folder, "config.json", "NaN")
    (folder / "config.json").write_text("[]")
    refused(folder, "config.json", "expected a JSON object")
    (folder / "config.json").write_bytes(b"\xff\xfe")
    refused(folder, "config.json")
    (folder / "config.json").unlink()
    refused(folder, "config.json", "missing")


def test_lerobot_weights_in_pieces(tmp_path: Path) -> None:
    folder = changed_lerobot(tmp_path / "shards")
    (folder / "model.safetensors").rename(folder / "model-00001-of-00002.safetensors")
    (folder / "model.safetensors.index.json").write_text("{}")
    refused(folder, "index.json")
