from __future__ import annotations

import os
import subprocess
import sys
from importlib import metadata

import pytest
from specpolicy_envs import simulator

BARE = """
import os, sys

class Missing:  # as on a machine without OpenGL and X libraries
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("OpenGL", "cv2"):
            raise ImportError(f"{name}: libGL.so.1: cannot open shared object file")

sys.meta_path.insert(0, Missing())
import gymnasium as gym
import specpolicy_envs
before = os.environ.get("MUJOCO_GL")
env = gym.make("specpolicy/Square-v0")
env.reset(seed=0)
env.step(env.action_space.sample())
env.close()
assert os.environ.get("MUJOCO_GL") == before
assert "cv2" not in sys.modules
"""


@pytest.mark.usefixtures("simulator")
@pytest.mark.parametrize("backend", [None, "egl"])
def test_an_episode_needs_no_opengl_and_prints_nothing(backend: str | None) -> None:
    environment = {key: value for key, value in os.environ.items() if key not in ("MUJOCO_GL", "PYOPENGL_PLATFORM")}
    if backend is not None:
        environment["MUJOCO_GL"] = backend
    done = subprocess.run(
        [sys.executable, "-c", BARE], env=environment, capture_output=True, text=True, timeout=400, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def pretend(monkeypatch: pytest.MonkeyPatch, **versions: str) -> None:
    def version(package: str) -> str:
        if package not in versions:
            raise metadata.PackageNotFoundError(package)
        return versions[package]

    monkeypatch.setattr(metadata, "version", version)


def test_a_missing_simulator_is_reported_with_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch)
    with pytest.raises(ImportError, match=r'robosuite.*pip install "specpolicy\[sim\]"'):
        simulator.check_versions()


def test_another_robosuite_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, robosuite="1.5.2", mujoco="3.3.7")
    with pytest.raises(ImportError, match=r"need robosuite 1\.4\.1, but version 1\.5\.2"):
        simulator.check_versions()


@pytest.mark.parametrize("mujoco", ["3.10.0", "3.17.0", "4.0.0"])
def test_a_mujoco_that_breaks_robosuite_is_refused(monkeypatch: pytest.MonkeyPatch, mujoco: str) -> None:
    pretend(monkeypatch, robosuite="1.4.1", mujoco=mujoco)
    with pytest.raises(ImportError, match=rf"{mujoco}.*pip install mujoco==3\.3\.7"):
        simulator.check_versions()


@pytest.mark.parametrize("mujoco", ["3.1.6", "3.3.7", "3.9.0", "3.4.0rc1"])
def test_a_mujoco_that_works_is_accepted(monkeypatch: pytest.MonkeyPatch, mujoco: str) -> None:
    pretend(monkeypatch, robosuite="1.4.1", mujoco=mujoco)
    simulator.check_versions()
