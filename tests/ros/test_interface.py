"""A file of topics that cannot work is refused before anything is started, in one line that says where."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from specpolicy.cli import main
from specpolicy.config import ConfigError, available
from specpolicy.policies.observations import ObservationSpec
from specpolicy.ros.interface import interface_from, load_interface

ROOT = Path(__file__).resolve().parents[2]


def good() -> dict[str, Any]:
    return {
        "observations": {
            "q": {"topic": "/q", "type": "JointState", "joints": ["a", "b"]},
            "camera": {"topic": "/i", "type": "Image"},
        },
        "actions": [{"topic": "/c", "type": "Float64MultiArray", "dims": [0, 1]}],
        "spec": {"delta_dims": [0], "absolute_dims": [1], "initial": [0.5]},
        "low": [-1.0, 0.0],
        "high": 1.0,
    }


def changed(path: str, value: Any) -> dict[str, Any]:
    """The good one with one entry changed, or left out with None."""
    values = node = good()
    *parents, last = path.split(".")
    for name in parents:
        node = node[int(name)] if isinstance(node, list) else node[name]
    if value is None:
        del node[last]
    else:
        node[last] = value
    return values


SPEC = ObservationSpec({"q": 2, "camera": 64}, 2, {"camera": (3, 8, 8)})


def test_a_good_one_fits_its_policy() -> None:
    interface = interface_from(good())
    interface.check_policy(SPEC, 2)
    assert interface.action_space.low.tolist() == [-1.0, 0.0] and interface.action_space.high.tolist() == [1.0, 1.0]


@pytest.mark.parametrize(
    ("path", "value", "says"),
    [
        ("low", None, "lacks low"),
        ("rate", 3, "unknown rate; known: observations"),
        ("low", 2.0, "entry 0 of an action: low=2 is not below high=1"),
        ("low", [-1.0, 0.7], "initial value 0.5 lies outside"),
        ("low", [0.2, 0.0], "a delta of 0 .standstill. lies outside"),
        ("low", float("nan"), "low=nan: expected a finite number, or 2"),
        ("high", [1.0], "expected a finite number, or 2"),
        ("max_age_s", 0, "max_age_s=0: expected a finite number, above 0"),
        ("observations", {}, "at least one topic"),
        ("observations.q.topic", "a b", "observations.q: topic='a b'"),
        ("observations.q.type", "Twist", "observations.q: type='Twist': expected one of Float64MultiArray"),
        ("observations.q.field", "torque", "field of a JointState='torque': expected one of position"),
        ("observations.q.joints", None, "observations.q: a JointState needs joints"),
        ("observations.q.joints", ["a", "a"], "a name is there twice"),
        ("observations.q.joint", ["a"], "observations.q: unknown joint"),
        ("observations.camera.topic", "/q", "/q is a JointState and a Image"),
        ("observations.camera.max_age_s", -1, "max_age_s=-1"),
        ("actions", {"topic": "/c"}, "actions=.* expected a list"),
        ("actions.0.dims", [0], r"take entries \[0\]; expected each of the 2 entries"),
        ("actions.0.dims", [0, 0], r"take entries \[0, 0\]"),
        ("actions.0.type", "Twist", r"actions\[0\]: type='Twist'"),
        ("actions.0.type", "PoseStamped", "a PoseStamped takes 7 entries"),
        ("actions.0.type", "JointTrajectory", "a JointTrajectory needs joints"),
        ("actions.0.topic", "/q", "/q is there twice"),
        ("spec.delta_dims", [1], "spec: delta_dims"),
    ],
)
def test_what_cannot_work_is_refused(path: str, value: Any, says: str) -> None:
    with pytest.raises(ValueError, match=says) as refused:
        interface_from(changed(path, value))
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("spec", "dim", "says"),
    [
        (ObservationSpec({"q": 2}, 2), 2, "the policy does not know camera. The policy observes q"),
        (ObservationSpec({"q": 2, "camera": 1, "force": 3}, 2, {"camera": (3, 8, 8)}), 2, "no topic gives force"),
        (
            ObservationSpec({"q": 3, "camera": 1}, 2, {"camera": (3, 8, 8)}),
            2,
            "takes 3 numbers, .* has 2",
        ),
        (ObservationSpec({"q": 2, "camera": 5}, 2), 2, "camera: the policy takes 5 numbers, and /i is a Image"),
        (SPEC, 7, "the policy's actions have 7 entries, and spec describes 2"),
    ],
)
def test_a_policy_that_needs_something_else_is_refused(spec: ObservationSpec, dim: int, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        interface_from(good()).check_policy(spec, dim)


@pytest.mark.parametrize("name", available("ros"))
def test_shipped_interfaces_are_good(name: str) -> None:
    load_interface(name)


def test_a_file_is_named_in_the_message(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    with pytest.raises(ConfigError, match="no such interface; known: arm, pusht, square"):
        load_interface(str(path))
    path.write_text("observations: [1, 2", encoding="utf-8")
    with pytest.raises(ConfigError, match=r"mine\.yaml cannot be read as YAML"):
        load_interface(str(path))
    path.write_text(yaml.safe_dump(changed("low", 2.0)), encoding="utf-8")
    with pytest.raises(ConfigError, match=r"mine\.yaml: entry 0 of an action"):
        load_interface(str(path))


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["config=pusht"], "ros needs checkpoint="),
        (["checkpoints/pusht"], "ros needs config="),
        (["checkpoints/pusht", "checkpoints/square", "config=pusht"], "give one checkpoint"),
        (["checkpoints/pusht", "config=none"], "known: arm, pusht, square"),
        (["checkpoints/pusht", "config=pusht", "rate_hz=0"], "rate_hz=0"),
        (["checkpoints/pusht", "config=pusht", "latency_ms=50"], "in lockstep only"),
    ],
)
def test_the_command_says_what_is_wrong(
    arguments: list[str], says: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    assert main(["ros", *arguments]) == 2
    error = capsys.readouterr().err
    assert says in error and error.count("\n") == 1
