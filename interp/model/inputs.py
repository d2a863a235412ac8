"""Inputs that are not words, made into vectors before the first site.

Patches (Dosovitskiy et al. 2021), the frames of a spectrogram (Radford et al. 2022) and the steps
of a trajectory (Chen et al. 2021) become `Tokens` with vectors in place of ids; `hook_embed` is
that vector, and positions are added behind it as they are to words.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from interp.core.config import TransformerConfig
from interp.core.tokens import Tokens

from .norm import _frozen

Array = Any
"""A tensor, an array or nested lists."""

RATE, HOP = 16_000, 160
"""Whisper's: audio samples per second, and per column of the spectrogram."""


class Patches(nn.Module):
    """The class vector, then weight ∗ patch + bias for each patch, row by row."""

    def __init__(self, cfg: TransformerConfig) -> None:
        super().__init__()
        assert cfg.image_size is not None  # the config has seen to it
        assert cfg.patch_size is not None
        self.shape, self.patch = (cfg.n_channels, *cfg.image_size), cfg.patch_size
        self.weight = _frozen(cfg.d_model, cfg.n_channels, *cfg.patch_size)
        self.bias = _frozen(cfg.d_model)
        self.class_vector = _frozen(cfg.d_model)
        rows, columns = cfg.patch_grid
        places = [f"patch {row},{column}" for row in range(rows) for column in range(columns)]
        self.kinds = ("class", *["patch"] * len(places))
        self.strings = ("class", *places)

    def forward(self, pixels: Array) -> Tokens:
        """Tokens of images [batch channel height width], rescaled and normalised as in training.

        Role "class" is the position whose logits are those of the image. Raises ValueError on
        another shape, and on whole numbers, which nobody has rescaled.
        """
        expected = f"pixels [batch {' '.join(map(str, self.shape))}]: channel, height, width"
        pixels = _numbers(
            pixels,
            self.weight,
            expected,
            "; rescale and normalise the image first, as the preprocessor_config.json of the "
            "model says: transformers.AutoImageProcessor.from_pretrained(folder)(image, "
            "return_tensors='pt')['pixel_values']",
        )
        if pixels.ndim == 3 and tuple(pixels.shape) == self.shape:
            raise ValueError(f"one image of shape {list(pixels.shape)}: give a batch, pixels[None]")
        if pixels.ndim != 4 or tuple(pixels.shape[1:]) != self.shape:
            raise ValueError(
                f"this model reads {expected}; got {list(pixels.shape)}. Position vectors are not "
                "interpolated: resize and crop images to that size"
            )
        patches = F.conv2d(pixels, self.weight, self.bias, stride=self.patch).flatten(2).mT
        first = self.class_vector.expand(len(pixels), 1, -1)
        where = torch.zeros(len(pixels), dtype=torch.long, device=pixels.device)
        return Tokens(
            None,
            vectors=torch.cat([first, patches], dim=1),
            kinds=self.kinds,
            strings=[self.strings] * len(pixels),
            roles={"class": where},
        )


class Frames(nn.Module):
    """gelu(conv(gelu(conv(spectrogram)))), three columns wide, the second of stride 2."""

    def __init__(self, cfg: TransformerConfig) -> None:
        super().__init__()
        self.n_mels, self.n_columns = cfg.n_mels, 2 * cfg.n_ctx
        self.first_weight = _frozen(cfg.d_model, cfg.n_mels, 3)
        self.first_bias = _frozen(cfg.d_model)
        self.second_weight = _frozen(cfg.d_model, cfg.d_model, 3)
        self.second_bias = _frozen(cfg.d_model)

    def forward(
        self, spectrogram: Array = None, *, audio: Array = None, rate: int | None = None
    ) -> Tokens:
        """Tokens of log-mel spectrograms [batch mel column], or of `audio` [sample] or
        [batch sample] at `rate` samples per second, filled up with silence.

        Raises ValueError on another shape or rate, and on audio that is longer than the model
        hears at a time.
        """
        if (spectrogram is None) == (audio is None):
            raise ValueError("give a spectrogram, or audio= and rate=: one of the two")
        if audio is not None:
            spectrogram = self.spectrogram(audio, rate)
        expected = f"a log-mel spectrogram [batch {self.n_mels} {self.n_columns}]: mel, column"
        x = _numbers(spectrogram, self.first_weight, expected)
        if x.ndim != 3 or tuple(x.shape[1:]) != (self.n_mels, self.n_columns):
            raise ValueError(
                f"this model reads {expected}; got {list(x.shape)}. "
                f"model.to_tokens(audio=waveform, rate={RATE}) makes it from a waveform"
            )
        x = F.gelu(F.conv1d(x, self.first_weight, self.first_bias, padding=1))
        x = F.gelu(F.conv1d(x, self.second_weight, self.second_bias, stride=2, padding=1))
        names = [f"frame {i}" for i in range(x.shape[2])]
        return Tokens(None, vectors=x.mT, kinds=("frame",) * len(names), strings=[names] * len(x))

    def spectrogram(self, audio: Array, rate: int | None) -> Float[Tensor, "batch mel column"]:
        """Whisper's log-mel spectrogram, by transformers."""
        if rate != RATE:
            raise ValueError(
                f"rate={rate!r}: this model reads audio of {RATE} samples per second; resample it "
                f"and give rate={RATE}"
            )
        expected = "audio [sample] or [batch sample], in [-1, 1]"
        waves, most = _numbers(audio, torch.empty(0), expected), self.n_columns * HOP
        if waves.ndim not in (1, 2) or 0 in waves.shape:
            raise ValueError(f"this model reads {expected}; got {list(waves.shape)}")
        if waves.shape[-1] > most:
            raise ValueError(
                f"{waves.shape[-1] / RATE:.1f} s of audio: this model hears {most / RATE:g} s at "
                f"a time, {most} samples; cut it into pieces"
            )
        from transformers import WhisperFeatureExtractor  # takes seconds, and few need it

        extractor = WhisperFeatureExtractor(feature_size=self.n_mels)
        extractor.n_samples = most
        rows = list(waves.detach().numpy().reshape(-1, waves.shape[-1]))
        made = extractor(rows, sampling_rate=RATE, return_tensors="pt")
        return made["input_features"]


class Trajectory(nn.Module):
    """Per timestep three vectors: maps of the return to go, the state and the action."""

    def __init__(self, cfg: TransformerConfig) -> None:
        super().__init__()
        self.n_steps = cfg.n_ctx
        self.widths = {"return": 1, "state": cfg.d_state, "action": cfg.d_vocab}
        for kind, width in self.widths.items():
            setattr(self, f"{kind}_weight", _frozen(cfg.d_model, width))
            setattr(self, f"{kind}_bias", _frozen(cfg.d_model))

    def forward(
        self,
        returns: Array = None,
        states: Array = None,
        actions: Array = None,
        timesteps: Array = None,
        mask: Array = None,
    ) -> Tokens:
        """Tokens of returns to go [batch step] (or [batch step 1]), states [batch step d_state] and
        actions [batch step d_action]: return, state, action, return, state, …

        timesteps [batch step]: by default 0, 1, …; mask [batch step]: false at padding. An action
        is predicted at the position of its state. Roles "return", "state" and "action" are those
        of the last real step. Raises ValueError on other shapes, unequal lengths, or timesteps
        that the model has no position for.
        """
        if returns is None or states is None or actions is None:
            raise ValueError(
                "this model reads trajectories: give returns=, states= and actions= (and, where "
                "wanted, timesteps= and mask=), to model.to_tokens or as a dict"
            )
        returns = _numbers(returns, self.return_weight, "returns [batch step]")
        given = {
            "return": returns[..., None] if returns.ndim == 2 else returns,
            "state": _numbers(states, self.state_weight, "states [batch step d_state]"),
            "action": _numbers(actions, self.action_weight, "actions [batch step d_action]"),
        }
        for kind, x in given.items():
            if x.ndim != 3 or x.shape[2] != self.widths[kind] or 0 in x.shape:
                raise ValueError(
                    f"this model reads {kind}s [batch step {self.widths[kind]}]; "
                    f"got {list(x.shape)}"
                )
        shapes = {f"{kind}s": list(x.shape[:2]) for kind, x in given.items()}
        steps = self._steps(timesteps, given["state"])
        real = None if mask is None else torch.as_tensor(mask, device=steps.device).bool()
        shapes |= {"timesteps": list(steps.shape)}
        shapes |= {} if real is None else {"mask": list(real.shape)}
        if len({tuple(shape) for shape in shapes.values()}) > 1:
            listed = ", ".join(f"{name} {shape}" for name, shape in shapes.items())
            raise ValueError(f"expected one [batch step] for all of a trajectory; got {listed}")
        each = [
            F.linear(x, getattr(self, f"{kind}_weight"), getattr(self, f"{kind}_bias"))
            for kind, x in given.items()
        ]
        last = torch.arange(steps.shape[1], device=steps.device).expand(steps.shape)
        last = (last if real is None else torch.where(real, last, 0)).amax(1)
        n = len(self.widths)
        return Tokens(
            None,
            vectors=torch.stack(each, dim=2).flatten(1, 2),
            mask=None if real is None else real.repeat_interleave(n, dim=1),
            positions=steps.repeat_interleave(n, dim=1),
            kinds=tuple(self.widths) * steps.shape[1],
            strings=self._strings(steps),
            roles={kind: n * last + i for i, kind in enumerate(self.widths)},
        )

    def _steps(self, timesteps: Array, states: Tensor) -> Int[Tensor, "batch step"]:
        if timesteps is None:
            steps = torch.arange(states.shape[1], device=states.device).expand(states.shape[:2])
        else:
            steps = torch.as_tensor(timesteps, device=states.device)
        if steps.is_floating_point() or steps.dtype == torch.bool:
            raise ValueError(f"timesteps need whole numbers, got {steps.dtype}")
        if not torch.compiler.is_compiling() and steps.numel():
            first, last = (int(t) for t in steps.aminmax())
            if first < 0 or last >= self.n_steps:
                raise ValueError(
                    f"timestep {first if first < 0 else last}: this model has positions for "
                    f"timesteps 0 to {self.n_steps - 1}"
                )
        return steps.long()

    def _strings(self, steps: Tensor) -> Sequence[Sequence[str]] | None:
        if torch.compiler.is_compiling():
            return None
        return [[f"{kind} {t}" for t in row for kind in self.widths] for row in steps.tolist()]


SENSES: dict[str, type[nn.Module]] = {
    "patches": Patches,
    "frames": Frames,
    "trajectory": Trajectory,
}


def _numbers(value: Array, like: Tensor, expected: str, hint: str = "") -> Tensor:
    """Numbers on the device and in the dtype of the weights."""
    if isinstance(value, str) or (isinstance(value, Sequence) and any(map(_is_text, value))):
        raise ValueError(f"this model reads {expected}, not text")
    try:
        x = torch.as_tensor(value)
    except (TypeError, ValueError, RuntimeError):
        kind = type(value).__name__
        raise ValueError(f"this model reads {expected}; got a {kind}{hint}") from None
    if not x.is_floating_point():
        raise ValueError(f"this model reads {expected}, as floats; got {x.dtype}{hint}")
    return x.to(like.device, like.dtype)


def _is_text(value: object) -> bool:
    return isinstance(value, str)
