"""conv2d and bias_relu as PyTorch operators."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from pyserve.errors import InvalidArgumentError
from pyserve.kernels import bias_relu, conv2d


def test_conv2d_takes_what_torch_takes() -> None:
    torch.manual_seed(0)
    x, weight, bias = torch.randn(2, 8, 9, 7), torch.randn(6, 4, 3, 2), torch.randn(6)
    for arguments in ({}, {"stride": (2, 1)}, {"padding": "same", "dilation": 2}, {"padding": "valid"}):
        torch.testing.assert_close(
            conv2d(x, weight, bias, groups=2, **arguments), F.conv2d(x, weight, bias, groups=2, **arguments)
        )


def test_wrong_channels_get_a_sentence_with_the_values() -> None:
    sentence = r"conv2d: weight has 3 input channels, expected C/groups = 64/2 = 32 \(x is \[8, 64, 56, 56\]\)"
    for device in ("cpu", "meta"):
        with pytest.raises(InvalidArgumentError, match=sentence):
            conv2d(torch.zeros(8, 64, 56, 56, device=device), torch.zeros(64, 3, 3, 3, device=device), groups=2)


def test_bias_relu_clamps_the_sum() -> None:
    x, bias, residual = torch.randn(2, 5, 3, 3), torch.randn(5), torch.randn(2, 5, 3, 3)
    expected = F.relu6(x + bias.view(1, -1, 1, 1) + residual)
    torch.testing.assert_close(bias_relu(x, bias, residual, activation="relu6"), expected)
