"""A network that predicts its target perfectly gives the clean sample back."""

import pytest
import torch
from diffusers import DDPMScheduler

from specpolicy.training.train import training_target


@pytest.mark.parametrize("prediction_type", ["epsilon", "sample", "v_prediction"])
@pytest.mark.parametrize("timestep", [0, 7, 19])
def test_the_target_gives_the_clean_sample_back(prediction_type: str, timestep: int) -> None:
    scheduler = DDPMScheduler(20, beta_schedule="squaredcos_cap_v2", prediction_type=prediction_type, clip_sample=False)
    generator = torch.Generator().manual_seed(0)
    clean, noise = torch.randn(2, 5, 16, 3, generator=generator, dtype=torch.float64)
    level = torch.full((5,), timestep)
    noisy = scheduler.add_noise(clean, noise, level)
    target = training_target(scheduler, clean, noise, level)
    back = scheduler.step(target, timestep, noisy).pred_original_sample
    torch.testing.assert_close(back, clean, rtol=1e-3, atol=2e-2 if timestep == 19 else 1e-4)


def test_an_unknown_prediction_type_is_named() -> None:
    scheduler = DDPMScheduler(20, prediction_type="score")
    x = torch.zeros(1, 2)
    with pytest.raises(ValueError, match="'score'; known: epsilon, sample, v_prediction"):
        training_target(scheduler, x, x, torch.zeros(1, dtype=torch.long))
