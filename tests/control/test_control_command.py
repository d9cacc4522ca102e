"""``specpolicy control``: mistakes in one line, and a real policy in a real environment."""

from __future__ import annotations

import json
import sys
from importlib.util import find_spec
from pathlib import Path

import gymnasium
import pytest
from hydra.utils import instantiate

from specpolicy.cli import EXIT_USER_ERROR, main
from specpolicy.config import available, compose
from specpolicy.control.action_space import ActionSpec
from specpolicy.control.executors import Executor, PreDrafting
from specpolicy.control.guards import Guards
from specpolicy.control.motion_limits import MotionLimits
from specpolicy.utils.digests import file_digest

ROOT = Path(__file__).parents[2]
CHECKPOINT = f"checkpoint={ROOT}/checkpoints/pusht"


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["executor=levitating"], "unknown executor 'levitating'; known: asynchronous, blocking"),
        (["executor=[lockstep,lockstep]"], "twice"),
        (["clock=sundial"], "unknown clock 'sundial'; known: real_time, simulated"),
        (["guards=none"], "unknown guards 'none'; known: standard, strict"),
        (["limits=none"], "unknown limits 'none'; known: one_arm, pusht"),
        (["limits=pusht", "limits.low=600"], "low=600 lies above high=502 in entry 0; exchange them"),
        (["limits=pusht", "limits.velocity=0"], "limits: velocity=0: expected a finite number, above 0"),
        (["limits=pusht", "limits.controller_hz=25"], "controller_hz=25 is no multiple of the policy's 10 Hz; take 20"),
        (["limits=one_arm"], "velocity has 7 values; the action has 2 entries"),
        (["guards.failure=pray"], "possible responses are brake, hold, last_safe, stop"),
        (["executor=asynchronous", "executor.prefetch_steps=20"], "expected 0 to n_action_steps=8"),
        (["latency=soon"], "latency='soon'; write milliseconds"),
        (["latency=recorded", "recording=nowhere.json"], "there is no latency recording at nowhere.json"),
        (["clock=real_time", "latency=100"], "in real time it is what it is"),
        (["executor=predrafting", "sampler=ddim5"], "'predrafting' pre-drafts, and 'ddim5' cannot"),
        (["view=telescope"], "write terminal, rerun, or a path that ends in .rrd"),
        (["record=notes.txt"], "write hdf5, lerobot or mcap, a path that ends in .hdf5 or .mcap, or a folder"),
        (["seeds=3:3"], "at least one seed"),
        (["actions=transport"], "the policy's actions have 2 entries"),
        (["checkpoint=/nowhere"], "no checkpoint at /nowhere"),
        (["predictor=oracle"], "unknown predictor 'oracle'; known: last, learned, linear"),
        (["executor=blocking", "predictor=linear"], "predictor=linear: executor 'blocking' has no use for predicted"),
        (
            ["checkpoint={square_transformer}", "task=square", "executor=asynchronous", "predictor=learned"],
            "has no forward model; run `specpolicy calibrate checkpoint=",
        ),
    ],
)
def test_mistakes_are_answered_in_one_line(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, arguments: list[str], says: str
) -> None:
    common = ["task=pusht", CHECKPOINT, f"out={tmp_path / 'out'}", "seeds=1", "latency=0", "num_envs=1"]
    asked = [each.partition("=")[0] for each in arguments]
    kept = [each for each in common if each.partition("=")[0] not in (*asked, "latency" if "clock" in asked else "")]
    shipped = {"square_transformer": ROOT / "checkpoints" / "square_transformer"}
    status = main(["control", *kept, *(each.format(**shipped) for each in arguments)])
    error = capsys.readouterr().err
    assert status == EXIT_USER_ERROR and error.startswith("error: ") and says in error and "Traceback" not in error


def test_a_missing_viewer_is_named_before_anything_runs(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(sys.modules, "rerun", None)
    assert main(["control", "task=pusht", CHECKPOINT, "view=x.rrd", f"out={tmp_path / 'x'}"]) == EXIT_USER_ERROR
    assert "pip install 'specpolicy[rerun]'" in capsys.readouterr().err and not (tmp_path / "x").exists()


def test_every_choice_can_be_made() -> None:
    for name in available("executor"):
        executor: Executor = instantiate(compose("control", [f"executor={name}", "n_action_steps=8"]).executor)
        assert executor.config.n_action_steps == 8 and executor.config.world_waits == (name == "lockstep")
        assert isinstance(executor, PreDrafting) == (executor.config.predraft is not None)
    for name in available("guards"):
        assert isinstance(instantiate(compose("control", [f"guards={name}"]).guards), Guards)
    for name in available("limits"):
        limits = instantiate(compose("control", [f"limits={name}"]).limits)
        assert isinstance(limits, MotionLimits) and limits.to_dict()
    for name in available("clock"):
        assert callable(instantiate(compose("control", [f"clock={name}"]).clock))


@pytest.mark.parametrize("task", available("actions"))
def test_the_meaning_of_each_tasks_actions_has_their_dimension(task: str) -> None:
    cfg = compose("control", [f"task={task}"])
    spec: ActionSpec = instantiate(cfg.actions)
    assert spec.dim == cfg.task.action_dim
    assert spec.initial_from is None or cfg.task.observations[spec.initial_from] == len(spec.absolute_dims)


def test_a_task_whose_actions_nobody_describes(capsys: pytest.CaptureFixture[str]) -> None:
    undescribed = sorted(set(available("task")) - set(available("actions")))
    for task in undescribed:
        assert main(["control", f"task={task}"]) == EXIT_USER_ERROR
        assert f"add configs/actions/{task}.yaml" in capsys.readouterr().err
    cfg = compose("control", ["~actions"])
    assert "actions" not in cfg


@pytest.mark.slow
@pytest.mark.skipif(find_spec("gym_pusht") is None, reason="needs PushT: pip install 'specpolicy[pusht]'")
def test_a_real_policy_in_a_real_loop(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    out = tmp_path / "out"
    arguments = [
        "control", "task=pusht", CHECKPOINT, "executor=[lockstep,predrafting]", "executor.predraft.ticks=2",
    ]  # fmt: skip
    assert main(arguments) == EXIT_USER_ERROR  # lockstep has no such setting
    assert "predraft" in capsys.readouterr().err
    gymnasium.make("specpolicy_envs:specpolicy/PushT-v0").close()
    arguments = [
        "control", "task=pusht", CHECKPOINT, "executor=[receding_horizon,predrafting]", "sampler=[free_block20,ddim2]",
        "latency=200", "seeds=7:8", "num_envs=1", f"out={out}", "timeline=false", "max_ticks=50", "record=mcap",
    ]  # fmt: skip
    assert main(arguments) == 0
    assert len({path.name.partition("-seed7-0")[0] for path in out.glob("episodes-*-seed7-0.mcap")}) == 3
    shown = capsys.readouterr()
    assert "pusht, 1 seed, 200 ms" in shown.out and "without pre-drafting, which they cannot: ddim2" in shown.err
    whole, drafted, few = json.loads((out / "table.json").read_text())
    assert (few["loop"]["executor"], few["sampler"]) == ("receding_horizon", "ddim2")  # it cannot pre-draft
    assert whole["exact"] and whole["loop"]["description"]["ms"] == 200.0
    whole, drafted = whole["loop"]["metrics"], drafted["loop"]["metrics"]
    assert whole["reaction_ms"]["max"] == pytest.approx(200.0)  # two ticks of 10 Hz
    assert drafted["finish_passes"] < 0.9 * drafted["passes"]
    assert drafted["finish_ms"]["p50"] < 200.0 and not drafted["faults"]
    before = {path: path.stat().st_mtime_ns for path in out.glob("ticks/*/*")}
    assert main(arguments) == 0
    assert {path: path.stat().st_mtime_ns for path in out.glob("ticks/*/*")} == before and len(before) == 3


@pytest.mark.skipif(find_spec("gym_pusht") is None, reason="needs PushT: pip install 'specpolicy[pusht]'")
def test_a_real_policy_asked_about_predicted_observations(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = [
        "control", "task=pusht", CHECKPOINT, "executor=asynchronous", "predictor=learned", "sampler=ddim2",
        "latency=200", "seeds=7:8", "num_envs=1", f"out={tmp_path}", "timeline=false", "max_ticks=40",
    ]  # fmt: skip
    assert main(arguments) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "asynchronous (learned)" in shown and "at the predicted observation, not at the true one" in shown
    loop = json.loads((tmp_path / "table.json").read_text())[0]["loop"]
    assert loop["metrics"]["predicted"] == pytest.approx(2.0, abs=0.01) and loop["metrics"]["outran"] == 0.0
    recipe = json.loads((tmp_path / "manifest.json").read_text())["samplers"]["asynchronous (learned), ddim2, 200 ms"]
    model = ROOT / "checkpoints" / "pusht" / "forward_model.safetensors"
    assert recipe["executor"]["settings"]["inputs"] == {"forward_model.safetensors": file_digest(model)}
