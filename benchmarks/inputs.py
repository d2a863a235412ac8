"""What a model reads, drawn at random for both sides: ids, images, spectrograms, trajectories.

A kind of input is one class, by `cfg.inputs`. It draws a batch under the names of Hugging Face's
arguments, changes it at one position, hands it to our model, and says which of our rows are Hugging
Face's output. Of an encoder–decoder it is the source; its decoder reads ids.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from interp import HookedTransformer, Tokens
from interp.core.config import TransformerConfig

Given = dict[str, Tensor]
"""By the names of Hugging Face's arguments."""

SEED = 0


class Words:
    """Ids."""

    role: str | None = None
    """Where the answer stands; None: at the last position."""

    def __init__(self, cfg: TransformerConfig) -> None:
        self.cfg = cfg

    def shape(self, batch: int, width: int) -> tuple[int, int]:
        """Rows and positions, near those asked for where the model has a width of its own."""
        return batch, width

    def draw(self, batch: int, width: int) -> Given:
        return {"input_ids": torch.randint(0, self.cfg.d_vocab, (batch, width), generator=seeded())}

    def corrupted(self, clean: Given) -> Given:
        """Another value at position 9 of 16, or as far along as that."""
        ids = clean["input_ids"].clone()
        where = ids.shape[1] * 9 // 16
        ids[:, where] = (ids[:, where] + 1) % self.cfg.d_vocab
        return {**clean, "input_ids": ids}

    def ours(self, given: Given) -> Any:
        """What our model, or its encoder, is called with."""
        return given["input_ids"]

    def read(self, output: Tensor) -> Tensor:
        """Of our output, what Hugging Face's has too."""
        return output


class Patches(Words):
    """Images. The answer stands at the class vector, whose logits are the only ones there."""

    role = "class"

    def shape(self, batch: int, width: int) -> tuple[int, int]:
        own = self.cfg.n_ctx
        return max(1, round(batch * width / own)), own

    def draw(self, batch: int, width: int) -> Given:
        assert self.cfg.image_size is not None
        size = (batch, self.cfg.n_channels, *self.cfg.image_size)
        return {"pixel_values": torch.randn(size, generator=seeded())}

    def corrupted(self, clean: Given) -> Given:
        assert self.cfg.patch_size is not None
        pixels, (height, width) = clean["pixel_values"].clone(), self.cfg.patch_size
        row, column = (n * 9 // 16 for n in self.cfg.patch_grid)
        pixels[..., row * height :, column * width :][..., :height, :width] *= -1
        return {"pixel_values": pixels}

    def ours(self, given: Given) -> Any:
        return given["pixel_values"]

    def read(self, output: Tensor) -> Tensor:
        return output[:, 0] if self.cfg.head == "unembed" else output


class Frames(Patches):
    """Spectrograms; a frame is two columns, which its neighbours' convolutions reach too."""

    role = None

    def draw(self, batch: int, width: int) -> Given:
        size = (batch, self.cfg.n_mels, 2 * width)
        return {"input_features": torch.randn(size, generator=seeded())}

    def corrupted(self, clean: Given) -> Given:
        columns = clean["input_features"].clone()
        where = 2 * (columns.shape[2] // 2 * 9 // 16)
        columns[:, :, where : where + 2] *= -1
        return {**clean, "input_features": columns}

    def ours(self, given: Given) -> Any:
        return given["input_features"]

    def read(self, output: Tensor) -> Tensor:
        return output


class Trajectory(Words):
    """Steps of a return, a state and an action; an action is read off its state."""

    role = "state"

    def shape(self, batch: int, width: int) -> tuple[int, int]:
        return batch, width // 3

    def draw(self, batch: int, width: int) -> Given:
        widths = {"returns_to_go": 1, "states": self.cfg.d_state, "actions": self.cfg.d_vocab}
        generator = seeded()
        drawn = {
            name: torch.randn(batch, width, size, generator=generator)
            for name, size in widths.items()
        }
        return {**drawn, "timesteps": torch.arange(width).expand(batch, width)}

    def corrupted(self, clean: Given) -> Given:
        states = clean["states"].clone()
        states[:, states.shape[1] * 9 // 16] *= -1
        return {**clean, "states": states}

    def ours(self, given: Given) -> Any:
        names = {"returns": "returns_to_go"} | {n: n for n in ("states", "actions", "timesteps")}
        return {ours: given[theirs] for ours, theirs in names.items()}

    def read(self, output: Tensor) -> Tensor:
        return output[:, 1::3]


KINDS: dict[str, type[Words]] = {
    "tokens": Words,
    "patches": Patches,
    "frames": Frames,
    "trajectory": Trajectory,
}


class Inputs:
    """What one model reads, with the ids of its decoder where it has two stacks."""

    def __init__(self, model: HookedTransformer) -> None:
        self.model = model
        reads = model.cfg if model.encoder is None else model.cfg.encoder
        assert reads is not None
        self.kind = KINDS[reads.inputs](reads)

    def draw(self, batch: int, width: int) -> Given:
        """A batch of about so many rows and positions; a decoder reads as many ids."""
        rows, own = self.kind.shape(batch, width)
        given = self.kind.draw(rows, own)
        if self.model.encoder is not None:
            ids = torch.randint(0, self.model.cfg.d_vocab, (rows, width), generator=seeded())
            given["decoder_input_ids"] = ids
        return given

    def ours(self, given: Given) -> Any:
        """The same for our model. The stem of a source that is no words runs here."""
        value = self.kind.ours(given)
        if self.model.encoder is None:
            return value
        return Tokens(given["decoder_input_ids"], source=self.model.encoder.accept(value))

    def tokens(self, given: Given) -> Tokens:
        """The same as Tokens, made once and for all."""
        return self.model.accept(self.ours(given))


def seeded() -> torch.Generator:
    return torch.Generator().manual_seed(SEED)
