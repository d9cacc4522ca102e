"""Where numbers come from."""

from __future__ import annotations

import hashlib
import json
import subprocess
from pathlib import Path

import pytest
import torch

from specpolicy.utils.digests import checkpoint_digest
from specpolicy.utils.provenance import collect_provenance, cpu_model, git_revision, package_versions


def test_provenance_is_plain_and_complete(tmp_path: Path) -> None:
    (tmp_path / "policy.safetensors").write_bytes(b"weights")
    provenance = collect_provenance(tmp_path, seeds=range(3))
    assert json.loads(json.dumps(provenance)) == provenance
    assert provenance["packages"]["torch"] == torch.__version__
    assert provenance["seeds"] == [0, 1, 2]
    assert provenance["machine"]["torch_threads"] == torch.get_num_threads()
    assert provenance["machine"]["cores"] >= 1
    assert provenance["checkpoint"]["sha256"] == checkpoint_digest(tmp_path)
    assert cpu_model()


def test_packages_that_are_not_installed_are_left_out() -> None:
    assert list(package_versions(["torch", "no-such-package"])) == ["torch"]


def test_digest_of_a_file_is_its_sha256(tmp_path: Path) -> None:
    file = tmp_path / "policy.pt"
    file.write_bytes(b"weights")
    assert checkpoint_digest(file) == hashlib.sha256(b"weights").hexdigest()


def test_digest_of_a_folder_follows_weights_and_configuration_only(tmp_path: Path) -> None:
    (tmp_path / "policy.safetensors").write_bytes(b"weights")
    (tmp_path / "config.json").write_text("{}")
    before = checkpoint_digest(tmp_path)
    (tmp_path / "README.md").write_text("a card")
    assert checkpoint_digest(tmp_path) == before
    (tmp_path / "config.json").write_text('{"task": "reach"}')
    changed = checkpoint_digest(tmp_path)
    assert changed != before
    (tmp_path / "policy.safetensors").rename(tmp_path / "other.safetensors")
    assert checkpoint_digest(tmp_path) not in (before, changed)


@pytest.mark.parametrize("name", ["missing", "."])
def test_no_checkpoint_is_an_error(tmp_path: Path, name: str) -> None:
    with pytest.raises(FileNotFoundError, match="no checkpoint at"):
        checkpoint_digest(tmp_path / name)


def test_git_revision_only_of_the_repository_that_tracks_the_file(tmp_path: Path) -> None:
    def git(*arguments: str) -> str:
        identity = ("-c", "user.name=A", "-c", "user.email=a@b.c", "-c", "commit.gpgsign=false")
        command = ["git", "-C", str(tmp_path), *identity, *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    tracked, other = tmp_path / "tracked.py", tmp_path / "other.py"
    tracked.write_text("1")
    other.write_text("1")
    assert git_revision(tracked) is None
    git("init")
    git("add", "tracked.py")
    git("commit", "-m", "first")
    assert git_revision(tracked) == {"revision": git("rev-parse", "HEAD"), "dirty": False}
    assert git_revision(other) is None
    tracked.write_text("2")
    revision = git_revision(tracked)
    assert revision is not None
    assert revision["dirty"]
