"""A small residual network, trained a few steps through our layers on every device, against PyTorch in float64."""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pyserve.kernels import fuse, info
from pyserve.kernels._extension import C

STEPS = 6


class Block(nn.Module):
    """Conv-BN-ReLU, Conv-BN, addition, ReLU: what `fuse` looks for."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(y)) + x)


def network() -> nn.Module:
    """A stem, a residual block, a strided and a depthwise convolution, a head."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1),
        nn.ReLU(),
        Block(16),
        nn.Conv2d(16, 24, 3, stride=2, padding=1),
        nn.ReLU6(),
        nn.Conv2d(24, 24, 3, padding=1, groups=24),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(24, 5),
    )


def train(model: nn.Module, device: str, dtype: torch.dtype) -> list[float]:
    """Losses of a few steps of SGD on random pictures, the same for every device and dtype."""
    generator = torch.Generator().manual_seed(1)
    model.to(device=device, dtype=dtype, memory_format=torch.channels_last).train()
    optimiser = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    losses = []
    for _ in range(STEPS):
        pictures = torch.randn(16, 3, 20, 20, generator=generator).to(device=device, dtype=dtype)
        labels = torch.randint(5, (16,), generator=generator).to(device)
        loss = F.cross_entropy(model(pictures.contiguous(memory_format=torch.channels_last)), labels)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    return losses


def test_training_agrees_with_torch_in_float64(
    device: str, record_property: Callable[[str, object], None]
) -> None:
    reference = network()
    ours = fuse(copy.deepcopy(reference), inference=False)
    expected = train(reference, "cpu", torch.float64)
    got = train(ours, device, torch.float32)
    worst = max(abs(a - b) for a, b in zip(got, expected, strict=True))
    record_property("losses", str([round(loss, 6) for loss in got]))
    record_property("largest_difference_of_the_loss", worst)
    assert worst <= 1e-4
    for name, value in reference.state_dict().items():
        torch.testing.assert_close(ours.state_dict()[name].cpu().to(value.dtype), value, atol=1e-3, rtol=1e-3)


def test_training_in_autocast_is_as_near_to_float64_as_torchs() -> None:
    """bfloat16 forward and backward, on the quickest kernels that this machine has for it, and on plain ones."""
    expected = train(network(), "cpu", torch.float64)

    def distance(model: nn.Module) -> float:
        with torch.autocast("cpu", torch.bfloat16):
            losses = train(model, "cpu", torch.float32)
        return max(abs(a - b) for a, b in zip(losses, expected, strict=True))

    allowed = 2 * distance(network())
    isa = C.isa_in_use()
    try:
        for name in {isa, "scalar"}:
            C.set_isa(name)
            before = info()
            assert distance(fuse(network(), inference=False)) <= allowed
            ran = {call for call, count in info().calls.items() if count > before.calls.get(call, 0)}
            assert any(call.startswith("conv2d_") and call.endswith(f"_{name}") for call in ran), ran
            assert info().fallbacks == before.fallbacks
    finally:
        C.set_isa(isa)
