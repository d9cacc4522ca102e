"""A certificate is given to exact samplers, refused to wrong ones, and says what it could have found."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import stats

import specpolicy
from specpolicy.cli import EXIT_USER_ERROR, main
from specpolicy.evaluation.certificate import SIGNIFICANCE, certify, detectable, encoding_nanoseconds
from specpolicy.speculative.exactness import ExactnessReport
from specpolicy.speculative.verifiers import AcceptedPrefix, BlockVerifier, DraftTargetGap

ROOT = Path(__file__).parents[2]
CHECKPOINT = ROOT / "checkpoints" / "tool_hang"
OBSERVATIONS = ROOT / "benchmarks" / "results" / "tool_hang" / "observations.npz"


class AcceptsEverything(BlockVerifier):
    """Keeps every draft: fast, and wrong."""

    def judge(self, comparison: DraftTargetGap, uniform: torch.Tensor) -> AcceptedPrefix:
        """Accept the whole window."""
        return AcceptedPrefix(comparison.length, torch.zeros_like(comparison.length, dtype=torch.float64))


def certified(sampler: object, chunks: int = 40) -> object:
    policy = specpolicy.load_policy(CHECKPOINT)
    with np.load(OBSERVATIONS) as arrays:
        observations = {name: arrays[name][:10] for name in arrays.files}
    samplers = {"ddpm": specpolicy.samplers.sequential(policy, 20), "mine": sampler}
    return certify(policy, samplers, "mine", observations, checkpoint="tool_hang", chunks=chunks, calls=3)


def process() -> specpolicy.ReverseProcess:
    return specpolicy.samplers.make_process(specpolicy.load_policy(CHECKPOINT), 20)


def test_an_exact_sampler_passes() -> None:
    certificate = certified(specpolicy.SpeculativeSampler(process(), window=12))
    assert certificate.passed and certificate.verdict.startswith("PASSED: mine has the distribution of the 20-step")
    assert certificate.recomputed < 1e-4
    reference, mine = certificate.rows
    assert reference.evaluations == 20 and reference.speed is None
    assert mine.evaluations < 12 and mine.rows > mine.evaluations and mine.speed[1] <= mine.speed[0] <= mine.speed[2]


def test_a_wrong_sampler_fails() -> None:
    certificate = certified(specpolicy.SpeculativeSampler(process(), verifier=AcceptsEverything(), window=12))
    assert not certificate.passed and certificate.smallest < 1e-6
    assert certificate.verdict.startswith("FAILED: mine does not have the distribution")


def test_an_approximate_sampler_is_refused() -> None:
    policy = specpolicy.load_policy(CHECKPOINT)
    with pytest.raises(ValueError, match="approximate"):
        certified(specpolicy.samplers.ddim(policy, 10))
    with pytest.raises(ValueError, match="at least 20"):
        certified(specpolicy.SpeculativeSampler(process()), chunks=5)


def test_what_it_says_it_would_have_found_it_finds() -> None:
    report = ExactnessReport({str(test): 1.0 for test in range(20)}, count=4000)
    claimed = detectable(report, steps=20, chunks=10)
    threshold = stats.norm.isf(SIGNIFICANCE / 20 / 2)
    draws = np.random.default_rng(0).normal(size=(400, 4000))
    means = (draws + claimed.mean).mean(axis=1) * np.sqrt(4000)
    assert 0.85 < (means > threshold).mean() < 0.95
    squares = ((draws * np.sqrt(1 + claimed.variance)) ** 2).sum(axis=1)
    assert 0.8 < (stats.norm.isf(stats.chi2.sf(squares, 4000)) > threshold).mean() < 0.97


def test_the_command_writes_a_certificate(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "certificate.json"
    job = ["certify", str(CHECKPOINT), f"observations={OBSERVATIONS}", "sampler=recycled20", "chunks=20", "calls=2"]
    assert main([*job, f"out={out}"]) == 0
    content = json.loads(out.read_text())
    assert content["passed"] and content["steps"] == 20 and content["sampler"] == "recycled20"
    assert [row["name"] for row in content["rows"]] == ["ddpm", "recycled20", "ddim10", "ddim5"]
    assert "PASSED" in capsys.readouterr().out
    assert main([*job, "sampler=ddim10"]) == EXIT_USER_ERROR
    assert main(["certify", f"observations={OBSERVATIONS}"]) == EXIT_USER_ERROR
    assert "give a checkpoint" in capsys.readouterr().err


def test_encoding_images_is_part_of_every_time() -> None:
    """A fast sampler must not look faster than it is because its images came as features."""
    policy = specpolicy.load_policy(ROOT / "checkpoints" / "pusht_image")
    features = {key: np.zeros((4, 2, dim), np.float32) for key, dim in policy.observations.keys.items()}
    assert encoding_nanoseconds(policy, features, 3) > 100_000
    assert encoding_nanoseconds(policy, policy.observations.zeros(1), 3) == 0
    assert encoding_nanoseconds(specpolicy.load_policy(CHECKPOINT), {}, 3) == 0
    samplers = {"ddpm": specpolicy.samplers.sequential(policy, 20), "ddim2": specpolicy.samplers.ddim(policy, 2)}
    found = certify(policy, samplers, "ddpm", features, checkpoint="pusht_image", chunks=20, calls=3)
    assert found.encoding_ms is not None and found.encoding_ms > 0.1
    assert found.rows[1].speed is not None and found.rows[1].speed[0] < 10
