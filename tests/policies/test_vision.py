"""Image encoders: the conventions of robomimic, diffusion_policy and LeRobot, and torchvision's names."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional

from specpolicy.policies.networks import vision
from specpolicy.policies.networks.vision import ImageEncoder, ResNet, SpatialSoftmax, build_backbone


def resnet18_names() -> list[str]:
    """Keys of torchvision's ResNet-18 without its classifier, in its order."""

    def norm(name: str) -> list[str]:
        return [f"{name}.{part}" for part in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")]

    names = ["conv1.weight", *norm("bn1")]
    for stage in range(1, 5):
        for block in range(2):
            at = f"layer{stage}.{block}"
            for number in (1, 2):
                names += [f"{at}.conv{number}.weight", *norm(f"{at}.bn{number}")]
            if stage > 1 and block == 0:
                names += [f"{at}.downsample.0.weight", *norm(f"{at}.downsample.1")]
    return names


def plain_resnet(state: dict[str, Tensor], image: Tensor, blocks: tuple[int, ...], convolutions: int) -> Tensor:
    """A residual network computed from the names in a state dict alone; group norm of 16 channels a group."""

    def conv(x: Tensor, name: str, stride: int = 1) -> Tensor:
        weight = state[f"{name}.weight"]
        return functional.conv2d(x, weight, stride=stride, padding=weight.shape[-1] // 2)

    def norm(x: Tensor, name: str) -> Tensor:
        return functional.group_norm(x, x.shape[1] // 16, state[f"{name}.weight"], state[f"{name}.bias"])

    x = functional.max_pool2d(norm(conv(image, "conv1", 2), "bn1").relu(), 3, 2, 1)
    strided = 1 if convolutions == 2 else 2
    for stage, count in enumerate(blocks, 1):
        for block in range(count):
            at, step = f"layer{stage}.{block}", 2 if stage > 1 and block == 0 else 1
            hidden = x
            for number in range(1, convolutions + 1):
                hidden = norm(conv(hidden, f"{at}.conv{number}", step if number == strided else 1), f"{at}.bn{number}")
                hidden = hidden.relu() if number < convolutions else hidden
            if f"{at}.downsample.0.weight" in state:
                x = norm(conv(x, f"{at}.downsample.0", step), f"{at}.downsample.1")
            x = (hidden + x).relu()
    return x


def bytes_like(*shape: int) -> Tensor:
    return torch.randint(256, shape, generator=torch.Generator().manual_seed(0), dtype=torch.uint8)


def test_names_are_those_of_torchvision() -> None:
    assert list(ResNet(norm="frozen_batch").state_dict()) == resnet18_names()
    statistics = ("running_mean", "running_var", "num_batches_tracked")
    grouped = [name for name in resnet18_names() if not name.endswith(statistics)]
    assert list(ResNet(norm="group").state_dict()) == grouped


@pytest.mark.parametrize(
    ("name", "parameters"),  # torchvision's, less 513 000 and 2 049 000 of the classifier
    [("resnet18", 11_176_512), ("resnet34", 21_284_672), ("resnet50", 23_508_032)],
)
def test_sizes_are_those_of_torchvision(name: str, parameters: int) -> None:
    assert sum(each.numel() for each in build_backbone(name).parameters()) == parameters


@pytest.mark.parametrize(
    ("name", "blocks", "convolutions"), [("resnet18", (2, 2, 2, 2), 2), ("resnet50", (3, 4, 6, 3), 3)]
)
def test_a_residual_network_computes_what_its_names_say(name: str, blocks: tuple[int, ...], convolutions: int) -> None:
    torch.manual_seed(0)
    made = build_backbone(name).eval()
    image = torch.rand(1, 3, 45, 38)
    with torch.no_grad():
        for parameter in made.parameters():
            if parameter.ndim == 1:  # scales and shifts of the norms, which start at one and zero
                parameter.add_(torch.randn_like(parameter) / 10)
        out = made(image)
        torch.testing.assert_close(
            out, plain_resnet(made.state_dict(), image, blocks, convolutions), rtol=1e-4, atol=1e-5
        )


@pytest.mark.parametrize("name", [*vision.RESNETS, "shallow"])
@pytest.mark.parametrize("size", [(84, 84), (75, 97)])
def test_sizes_of_maps_are_known_before(name: str, size: tuple[int, int]) -> None:
    made = build_backbone(name).to("meta")
    maps = made(torch.empty(2, 3, *size, device="meta"))
    assert tuple(maps.shape) == (2, made.out_channels, *made.map_size(*size))


def test_frozen_batch_norm_neither_trains_nor_counts() -> None:
    made = vision.FrozenBatchNorm2d(4)
    made.running_mean = torch.full((4,), 2.0)
    made.running_var = torch.full((4,), 9.0)
    x = torch.randn(3, 4, 5, 5)
    out = made.train()(x)
    torch.testing.assert_close(out, (x - 2) / (9 + 1e-5) ** 0.5)
    assert (made.running_mean == 2).all()
    assert not any(parameter.requires_grad for parameter in made.parameters())


def test_spatial_softmax_finds_a_peak() -> None:
    pool = SpatialSoftmax(2, (5, 9), keypoints=None)
    maps = torch.zeros(1, 2, 5, 9)
    maps[0, 0, 1, 6] = 100  # row 1 of 5, column 6 of 9
    torch.testing.assert_close(pool(maps), torch.tensor([[[0.5, -0.5], [0.0, 0.0]]]))  # an even map: the middle
    corner = torch.zeros(1, 2, 5, 9)
    corner[:, :, -1, -1] = 100
    torch.testing.assert_close(pool(corner), torch.ones(1, 2, 2))


def test_temperature_divides_the_activity() -> None:
    maps = torch.tensor([[[[0.0, 3.0]]]])
    warm = SpatialSoftmax(1, (1, 2), keypoints=None, temperature=3.0)(maps)[0, 0]
    expected = (np.e - 1) / (np.e + 1)  # tanh(1/2)
    torch.testing.assert_close(warm, torch.tensor([expected, -1.0], dtype=torch.float32))
    learnable = SpatialSoftmax(1, (1, 2), keypoints=None, learnable=True)
    assert [name for name, _ in learnable.named_parameters()] == ["temperature"]


@pytest.mark.parametrize(
    ("size", "crop", "down", "nearest"),
    [(84, 76, 4, 4), (96, 84, 6, 6), (81, 76, 2, 2), (83, 76, 3, 4), (85, 76, 4, 4), (87, 76, 5, 6)],
)
def test_odd_borders_are_rounded_as_each_package_does(size: int, crop: int, down: int, nearest: int) -> None:
    assert vision.crop_start(size, crop, "down") == down
    assert vision.crop_start(size, crop, "nearest") == nearest
    image = torch.arange(size * size, dtype=torch.float32).view(1, 1, size, size)
    assert vision.centre_crop(image, (crop, crop), "nearest")[0, 0, 0, 0] == nearest * size + nearest


def test_random_crops_are_parts_of_their_images() -> None:
    images = torch.arange(40 * 6 * 7, dtype=torch.float32).view(40, 1, 6, 7).repeat(1, 2, 1, 1)
    parts = vision.random_crop(images, (4, 5), torch.Generator().manual_seed(0))
    windows = images.unfold(2, 4, 1).unfold(3, 5, 1)  # image, channel, 3 rows, 3 columns, 4, 5
    found = [
        [(row, column) for row in range(3) for column in range(3) if torch.equal(part, image[:, row, column])]
        for part, image in zip(parts, windows, strict=True)
    ]
    assert all(len(places) == 1 for places in found)
    assert len({places[0] for places in found}) == 9  # every place is drawn in 40 images
    again = vision.random_crop(images, (4, 5), torch.Generator().manual_seed(0))
    assert torch.equal(parts, again)


def test_it_crops_at_random_in_training_only() -> None:
    encoder = ImageEncoder((3, 20, 20), "narrow", crop=(16, 16), features=4)
    image = bytes_like(1, 3, 20, 20).expand(8, 3, 20, 20)
    still = encoder.eval().prepare(image)
    assert torch.equal(still[0], image[0, :, 2:18, 2:18] / 255)
    assert torch.equal(still, still[:1].expand_as(still))
    moved = encoder.train().prepare(image, torch.Generator().manual_seed(0))
    assert not torch.equal(moved, moved[:1].expand_as(moved))


def test_resizing_is_bilinear_before_the_crop() -> None:
    image = bytes_like(2, 3, 40, 60)
    arguments: dict[str, Any] = {"backbone": "narrow", "resize": (20, 30), "crop": (16, 17)}
    smooth = ImageEncoder((3, 40, 60), **arguments, antialias=True).eval().prepare(image)
    coarse = ImageEncoder((3, 40, 60), **arguments, antialias=False).eval().prepare(image)
    # Half the size without antialiasing: the mean of four neighbours.
    expected = functional.avg_pool2d(image / 255, 2)[:, :, 2:18, 6:23]
    torch.testing.assert_close(coarse, expected)
    assert (smooth - expected).abs().mean() > 0.01


def test_bytes_and_numbers_give_the_same() -> None:
    encoder = ImageEncoder((3, 24, 24), "narrow", scale=[2.0, 3.0, 4.0], offset=-1.0, features=6).eval()
    image = bytes_like(2, 3, 24, 24)
    torch.testing.assert_close(encoder(image), encoder(image / 255))
    torch.testing.assert_close(encoder.prepare(image)[:, 2], image[:, 2] / 255 * 4 - 1)


def test_pools_and_heads_have_the_lengths_that_they_say() -> None:
    image = bytes_like(2, 3, 64, 64)
    for arguments, features in (
        ({"backbone": "resnet18", "pool": "average", "features": None}, 512),
        ({"backbone": "narrow", "keypoints": 5, "features": None}, 10),
        ({"backbone": "narrow", "keypoints": 5, "features": 7}, 7),
        ({"backbone": "narrow", "norm": "frozen_batch", "keypoints": None, "features": None}, 128),
    ):
        encoder = ImageEncoder((3, 64, 64), **arguments).eval()
        assert encoder.out_features == features
        assert encoder(image).shape == (2, features)


def test_average_pooling_averages() -> None:
    encoder = ImageEncoder((3, 64, 48), "narrow", pool="average", features=None).eval()
    image = bytes_like(2, 3, 64, 48)
    torch.testing.assert_close(encoder(image), encoder.backbone(encoder.prepare(image)).mean(dim=(2, 3)))


def test_everything_is_trained() -> None:
    encoder = ImageEncoder((3, 32, 32), "narrow", keypoints=4, features=8)
    encoder(bytes_like(4, 3, 32, 32)).square().sum().backward()
    dead = [name for name, each in encoder.named_parameters() if each.grad is None or not each.grad.any()]
    assert [name for name in dead if name != "pool.nets.bias"] == []  # a softmax does not see a constant


def test_features_are_those_of_robomimic() -> None:
    with np.load(Path(__file__).with_name("robomimic_camera.npz")) as file:
        arrays = {name: torch.from_numpy(file[name]) for name in file.files}
    encoder = ImageEncoder((3, 84, 84), "shallow", crop=(76, 76), crop_rounding="down", keypoints=6, features=8).eval()
    names = {"backbone.nets": "backbone", "pool.nets": "pool.nets", "nets.3": "head.0"}
    state = {"pool.temperature": torch.ones(1)}
    for name, tensor in arrays.items():
        stem = next((stem for stem in names if name.startswith(f"weights/{stem}.")), None)
        if stem is not None:
            state[name.replace(f"weights/{stem}", names[stem])] = tensor
    encoder.load_state_dict(state)
    features = encoder(arrays["image"].permute(0, 3, 1, 2))
    torch.testing.assert_close(features, arrays["features"], rtol=0, atol=1e-6)


def test_what_it_cannot_do_is_said() -> None:
    with pytest.raises(ValueError, match=r"crop=\(90, 90\) is larger than the image, \(84, 84\)"):
        ImageEncoder((3, 84, 84), crop=(90, 90))
    with pytest.raises(ValueError, match="backbone 'vit' of an image encoder; known:"):
        ImageEncoder((3, 84, 84), "vit")
    with pytest.raises(ValueError, match="norm 'layer' of an image encoder; known:"):
        build_backbone("resnet18", "layer")
    with pytest.raises(ValueError, match="pool='max' of an image encoder; known:"):
        ImageEncoder((3, 84, 84), "narrow", pool="max")
    with pytest.raises(ValueError, match=r"images of shape \(3, 96, 96\); this encoder was built for \(3, 84, 84\)"):
        ImageEncoder((3, 84, 84), "narrow")(bytes_like(1, 3, 96, 96))
