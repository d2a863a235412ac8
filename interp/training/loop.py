"""The training loop: AdamW, warm-up and cosine, in the manner of nanoGPT.

A run lives in one folder: `config.json` and weights of the newest model (what `interp.load` opens),
`log.csv`, `checkpoints/` kept on the way, and the state from which it goes on (see `state.py`).
"""

from __future__ import annotations

import dataclasses
import math
import os
import signal
import time
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from ..fingerprint import digest
from ..loading import save
from ..model import HookedTransformer
from . import state
from .data import IGNORED, Batch, Data

SAMPLE = 100
"""Tokens of a sample."""


class TrainingError(ValueError):
    """A run that cannot go on, or cannot go on from what lies in its folder."""


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """How a model is trained. The defaults train a small decoder on two CPU cores."""

    steps: int = 2_000
    """Updates of the weights."""
    batch_size: int = 32
    """Sequences per forward pass."""
    accumulate: int = 1
    """Forward passes per update."""
    lr: float = 1e-3
    """Highest learning rate."""
    min_lr: float = 1e-4
    """Learning rate at the end of the cosine."""
    warmup: int = 100
    """Steps of linear warm-up."""
    weight_decay: float = 0.1
    """Of matrices and embeddings; AdamW's, decoupled (Loshchilov and Hutter 2019)."""
    decay_all: bool = False
    """Biases and gains decay as well."""
    betas: tuple[float, float] = (0.9, 0.99)
    """Of AdamW."""
    grad_clip: float | None = 1.0
    """Largest norm of the gradient; None: any."""
    seed: int = 0
    """Of the initial weights; the data have their own."""
    init_std: float = 0.02
    """Standard deviation of the initial weights (see `HookedTransformer.init_weights`)."""
    eval_every: int = 250
    """Steps between validations; a validation saves the state, too."""
    eval_batches: int = 20
    """Batches of a validation, always the same ones."""
    checkpoints: int = 0
    """Models kept over the run, at steps spaced evenly in their logarithm, first and last
    among them."""
    mixed_precision: bool = True
    """bfloat16 products on CUDA; on the CPU never."""
    compile: bool | None = None
    """torch.compile; by default on CUDA, where it helps."""
    double_loss: bool = False
    """Softmax and loss in float64 (small losses stay exact)."""

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "accumulate", "eval_every", "eval_batches"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ValueError(f"{name}={value!r}: expected a whole number, 1 or more")
        for name in ("warmup", "checkpoints"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 0:
                raise ValueError(f"{name}={value!r}: expected a whole number, 0 or more")
        if not 0 <= self.min_lr <= self.lr < float("inf") or self.lr == 0:
            raise ValueError(
                f"lr={self.lr}, min_lr={self.min_lr}: expected 0 ≤ min_lr ≤ lr and lr > 0"
            )

    def lr_at(self, step: int) -> float:
        """Linear warm-up, then a cosine down to min_lr (Loshchilov and Hutter 2017)."""
        if step < self.warmup:
            return self.lr * (step + 1) / self.warmup
        along = (step - self.warmup) / max(1, self.steps - self.warmup)
        return self.min_lr + 0.5 * (1 + math.cos(math.pi * along)) * (self.lr - self.min_lr)

    @property
    def kept(self) -> list[int]:
        """The steps after which a model is kept."""
        if not self.checkpoints:
            return []
        n = max(2, self.checkpoints) - 1
        return sorted({0, *(round(self.steps ** (i / n)) for i in range(1, n + 1))})


def train(
    model: HookedTransformer,
    data: Data,
    out: str | os.PathLike,
    config: TrainConfig | None = None,
    *,
    fresh: bool = True,
    progress: bool = True,
) -> HookedTransformer:
    """Train `model` and leave it in the folder `out`.

    fresh: its weights are drawn anew; False begins with those that it has (fine-tuning).

    The same call goes on where a stopped run was: after Ctrl-C, a kill or an error. On the CPU it
    ends in the same bits as an uninterrupted run. Raises TrainingError where `out` holds a run of
    another config, other data or other first weights (with the differences), and on a loss that is
    not finite (the last good state stays); KeyboardInterrupt once the state is saved.
    """
    config, out = config or TrainConfig(), Path(out)
    described = {
        "train": dataclasses.asdict(config),
        "model": model.cfg.to_dict(),
        "data": data.fingerprint,
    }
    if fresh:
        model.init_weights(config.seed, config.init_std)
    else:
        described["first weights"] = digest(model.state_dict())
    model.requires_grad_(True)
    run = Run(model, data, out, config, described)
    run.resume()
    with (
        Interrupts() as stopped,
        tqdm(total=config.steps, initial=run.step, disable=not progress, unit="step") as bar,
    ):
        try:
            run.go(stopped, bar)
        finally:
            model.requires_grad_(False)
    return model.eval()


class Run:
    """One run on its way."""

    def __init__(
        self,
        model: HookedTransformer,
        data: Data,
        out: Path,
        config: TrainConfig,
        described: dict,
    ) -> None:
        self.model, self.data, self.out, self.config = model, data, out, config
        self.described = described
        self.optimizer = _optimizer(model, config)
        self.step = 0
        """Updates done."""
        self.log: list[dict[str, float]] = []
        on_gpu = model.device.type == "cuda"
        self.forward = model
        if on_gpu if config.compile is None else config.compile:
            self.forward = torch.compile(model)
        self.precision = nullcontext()
        if on_gpu and config.mixed_precision:
            self.precision = torch.autocast("cuda", torch.bfloat16)

    def resume(self) -> None:
        """Take up the newest state of the folder, if it has one."""
        found = state.newest(self.out)
        if found is None:
            return
        there = state.read_about(found)
        differences = state.differences(there["run"], self.described)
        if differences:
            raise TrainingError(
                f"{self.out} holds another run, {there['step']} steps on: {differences}. Give the "
                "same settings to go on with it, or another folder"
            )
        state.read(found, self.model, self.optimizer)
        self.step, self.log = there["step"], there["log"]

    def go(self, stopped: Interrupts, bar: tqdm) -> None:
        config, kept = self.config, set(self.config.kept)
        if self.step == 0:
            self._keep(kept)
        began, tokens = time.perf_counter(), 0
        while self.step < config.steps:
            loss, n = self.update()
            tokens += n
            self.step += 1
            rate = tokens / (time.perf_counter() - began)
            bar.update()
            bar.set_postfix_str(f"loss {loss:.3f}, {rate:,.0f} tokens/s")
            self._keep(kept)
            last = self.step == config.steps
            validate = last or self.step % config.eval_every == 0
            if validate:
                self._log(loss, rate)
                bar.write(self._described())
            if validate or stopped:
                self._save()
            if stopped and not last:
                raise KeyboardInterrupt(
                    f"stopped after step {self.step} of {config.steps}; the same command goes on"
                )

    def update(self) -> tuple[float, int]:
        """One step of the optimiser: the mean loss in nats per token, and the tokens it saw."""
        config, total, tokens = self.config, 0.0, 0
        lr = config.lr_at(self.step)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        for i in range(config.accumulate):
            number = self.step * config.accumulate + i
            batch = self.data.batch("train", number, config.batch_size)
            loss = self._loss(batch) / config.accumulate
            loss.backward()
            total += float(loss.detach())
            tokens += batch.ids.numel()
        norm = torch.nn.utils.clip_grad_norm_(
            self.model.parameters(), config.grad_clip or float("inf")
        )
        if not math.isfinite(total) or not bool(norm.isfinite()):
            raise TrainingError(
                f"step {self.step}: the loss is {total} and the norm of its gradient {float(norm)},"
                f" at a learning rate of {lr:.2g}; {self.out} keeps the last good state, from "
                "before. Lower lr, or lengthen the warm-up"
            )
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return total, tokens

    def _loss(self, batch: Batch) -> Tensor:
        every = bool((batch.targets != IGNORED).all())
        ids, targets = (part.to(self.model.device, non_blocking=True) for part in batch)
        with self.precision:
            if self.forward is self.model and not every:
                asked = targets != IGNORED
                logits, targets = self.model.logits_at(ids, asked), targets[asked]
            else:
                logits = self.forward(ids).flatten(0, 1)
        if self.config.double_loss:
            logits = logits.double()
        return F.cross_entropy(logits, targets.flatten(), ignore_index=IGNORED)

    @torch.no_grad()
    def _validate(self) -> float:
        losses = [
            self._loss(self.data.batch("val", i, self.config.batch_size))
            for i in range(self.config.eval_batches)
        ]
        return float(torch.stack(losses).mean())

    def _log(self, loss: float, rate: float) -> None:
        line = {"step": self.step, "lr": self.config.lr_at(self.step - 1), "train_loss": loss}
        self.log.append(line | {"val_loss": self._validate(), "tokens_per_second": round(rate)})

    def _described(self) -> str:
        """The newest line of the log, and what the model writes where it can."""
        text = "step {step}: train {train_loss:.4f}, val {val_loss:.4f}".format(**self.log[-1])
        tokenizer, cfg = self.data.tokenizer, self.model.cfg
        if tokenizer is None or not cfg.causal or cfg.n_ctx < 2:
            return text
        prompt = self.data.batch("val", 0, 1).ids[:, :1]
        new = min(SAMPLE, cfg.n_ctx - 1)
        sample = self.model.generate(prompt, new, temperature=0.8, seed=self.config.seed)
        return f"{text} | {sample.texts[0]!r}"

    def _save(self) -> None:
        about = {"step": self.step, "run": self.described, "log": self.log}
        try:
            state.write(self.out, self.step, self.model, self.optimizer, about)
            pd.DataFrame(self.log).to_csv(self.out / "log.csv", index=False)
            save(self.model, self.out)
        except OSError as error:
            raise TrainingError(
                f"step {self.step} could not be saved in {self.out} ({error}); what was saved "
                "before is whole. Make room and give the same command to go on"
            ) from error

    def _keep(self, kept: set[int]) -> None:
        if self.step in kept:
            save(self.model, self.out / "checkpoints" / f"step-{self.step:07}")


def _optimizer(model: HookedTransformer, config: TrainConfig) -> torch.optim.AdamW:
    named = list(model.named_parameters())
    decayed = [p for _, p in named if config.decay_all or p.ndim > 1]
    rest = [p for _, p in named if not (config.decay_all or p.ndim > 1)]
    groups = [
        {"params": decayed, "weight_decay": config.weight_decay},
        {"params": rest, "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    return torch.optim.AdamW(groups, lr=config.lr, betas=config.betas, fused=True)


class Interrupts:
    """True after the first Ctrl-C, so that a step is finished before a run stops; the second one
    interrupts at once."""

    def __init__(self) -> None:
        self.asked = False
        self._before = None

    def __bool__(self) -> bool:
        return self.asked

    def __enter__(self) -> Interrupts:
        try:
            self._before = signal.signal(signal.SIGINT, self._ask)
        except ValueError:  # not in the main thread: Python delivers no signal here
            self._before = None
        return self

    def __exit__(self, *_: object) -> None:
        if self._before is not None:
            signal.signal(signal.SIGINT, self._before)

    def _ask(self, *_: object) -> None:
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True
