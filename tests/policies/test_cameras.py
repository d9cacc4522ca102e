"""Cameras: images by name, and no frame encoded twice."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from specpolicy.policies.cameras import CameraEncoders, CameraSpec

SMALL: dict[str, Any] = {"shape": [3, 32, 40], "backbone": "narrow", "keypoints": 8, "features": 12}
CPU = torch.device("cpu")


def made(**changes: Any) -> CameraEncoders:
    torch.manual_seed(0)
    return CameraEncoders({"front": SMALL | changes, "wrist": SMALL | {"layout": "CHW", "features": 3}}).eval()


def images(*steps: int, batch: int = 1) -> dict[str, Any]:
    """A history in which equal numbers are equal frames."""

    def frame(step: int, *shape: int) -> Any:
        return np.random.default_rng(step).integers(256, size=shape, dtype=np.uint8)

    front = np.stack([frame(step, 32, 40, 3) for step in steps])
    wrist = np.stack([frame(100 + step, 3, 32, 40) for step in steps])
    return {"front": front.reshape(batch, -1, 32, 40, 3), "wrist": wrist.reshape(batch, -1, 3, 32, 40)}


def test_each_camera_has_its_own_encoder_and_layout() -> None:
    encoders, history = made(), images(1, 2)
    assert encoders.features == {"front": 12, "wrist": 3}
    assert {name.split(".")[0] for name in encoders.state_dict()} == {"0", "1"}
    with torch.inference_mode():
        features = encoders.encode(history, CPU)
        front = encoders[0](torch.from_numpy(history["front"][0]).permute(0, 3, 1, 2))
        wrist = encoders[1](torch.from_numpy(history["wrist"][0]))
    assert features["front"].shape == (1, 2, 12)
    torch.testing.assert_close(features["front"][0], front)
    torch.testing.assert_close(features["wrist"][0], wrist)


def test_a_frame_of_the_last_chunk_is_not_encoded_again() -> None:
    encoders = made()
    with torch.inference_mode():
        first = encoders.encode(images(1, 1), CPU)  # an episode's start: the first frame fills the history
        assert encoders.encoded == 2  # one a camera
        second = encoders.encode(images(1, 2), CPU)
        assert encoders.encoded == 4
        assert torch.equal(second["front"][:, 0], first["front"][:, 1])
        encoders.encode(images(1, 2), CPU)  # as after a pre-draft from the same observation
        assert encoders.encoded == 4
        encoders.encode(images(3, 4, 2, 3, batch=2), CPU)  # two episodes that share frames with each other and the past
        assert encoders.encoded == 8
        encoders.encode(images(1, 1), CPU)  # what lies further back is forgotten
        assert encoders.encoded == 10


def test_new_weights_forget_what_the_old_ones_encoded() -> None:
    encoders, history = made(), images(1, 2)
    with torch.inference_mode():
        before = encoders.encode(history, CPU)
        state = {name: tensor + 0.1 for name, tensor in encoders.state_dict().items()}
    for change in (
        lambda: encoders.load_state_dict(state),
        lambda: encoders.double().float(),
        lambda: encoders.train().eval(),
    ):
        count = encoders.encoded
        change()
        with torch.inference_mode():
            after = encoders.encode(history, CPU)
        assert encoders.encoded == count + 4
    assert not torch.equal(after["front"], before["front"])


def test_gradients_reach_every_frame() -> None:
    encoders = made()
    encoders.encode(images(1, 1), CPU)
    features = encoders.encode(images(1, 1), CPU)
    assert encoders.encoded == 8
    (gradient,) = torch.autograd.grad(features["front"].sum(), [encoders.get_parameter("0.backbone.conv1.weight")])
    assert gradient.abs().sum() > 0


def test_training_crops_at_random_from_the_generator() -> None:
    encoders = made(crop=[28, 28]).train()
    batch = torch.from_numpy(images(1, 1)["front"][0])
    one, other = (encoders.encode_batch("front", batch, torch.Generator().manual_seed(seed)) for seed in (0, 0))
    assert torch.equal(one, other)
    assert not torch.equal(one[0], one[1])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"layout": "WHC"}, "cameras.front.layout is 'WHC'; known: HWC, CHW"),
        ({"shape": [96, 96]}, r"cameras.front.shape is \[96, 96\]; expected \[channels, height, width\]"),
        ({"shape": [3, 0, 96]}, r"expected \[channels, height, width\]"),
        ({"crop": [40, 40]}, r"cameras.front: crop=\(40, 40\) is larger than the image"),
        ({"colour": "red"}, r"cameras.front: .*colour"),
    ],
)
def test_a_configuration_that_cannot_be_is_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        made(**changes)


def test_shapes_follow_the_layout() -> None:
    assert CameraSpec.from_dict("a", {"shape": [3, 84, 96]}).raw_shape == (84, 96, 3)
    assert CameraSpec.from_dict("a", {"layout": "CHW", "shape": [3, 84, 96]}).raw_shape == (3, 84, 96)
