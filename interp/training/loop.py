"""The training loop: AdamW, warm-up and cosine, in the manner of nanoGPT.

A run lives in one folder: `config.json` and weights of the newest model (what `interp.load` opens),
`log.csv`, `checkpoints/` kept on the way, and the state from which it goes on (see `state.py`),
which is written after all that it vouches for.
"""

from __future__ import annotations

import dataclasses
import logging
import math
import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from interp.core.files.writing import locked, write_file
from interp.core.progress import shows_progress
from interp.loading import save
from interp.loading.fingerprint import digest, machine_facts
from interp.model import HookedTransformer

from . import state
from .config import TrainConfig
from .data import IGNORED, Batch, Data
from .state import TrainingError

SAMPLE = 100
"""Tokens of a sample."""
MODEL = ("config.json", "model.safetensors")
"""By these a folder holds a model."""
logger = logging.getLogger(__name__)


def train(
    model: HookedTransformer,
    data: Data,
    out: str | os.PathLike,
    config: TrainConfig | None = None,
    *,
    fresh: bool = True,
    resume_anyway: bool = False,
    progress: bool = True,
) -> HookedTransformer:
    """Train `model` and leave it in the folder `out`.

    fresh: its weights are drawn anew; False begins with those that it has (fine-tuning).

    The same call goes on where a stopped run was: after Ctrl-C, a kill or an error. On the CPU it
    ends in the same bits as an uninterrupted run, if code, torch, threads, dtype and device are the
    same; where one of them is another, resume_anyway=True goes on all the same.

    Raises TrainingError where `out` holds a run of another config, other data, other first weights
    or another machine (with the differences), a damaged one, a model of other origin, or one that
    another process trains; on a disk that is full, and on a loss that is not finite (the last good
    state stays); KeyboardInterrupt once the state is saved.
    """
    config, out = config or TrainConfig(), Path(out)
    with _alone(out):
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
        try:
            run = Run(model, data, out, config, described)
            run.resume(resume_anyway)
            with (
                Interrupts() as stopped,
                tqdm(
                    total=config.steps,
                    initial=run.step,
                    disable=not (progress and shows_progress()),
                    unit="step",
                ) as bar,
            ):
                run.go(stopped, bar)
        finally:
            model.requires_grad_(False)
    return model.eval()


@contextmanager
def _alone(out: Path) -> Iterator[None]:
    """The folder of a run, made where there is none, and held by this process alone."""
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise TrainingError(f"{out}: no folder can be made there ({error.strerror})") from None
    try:
        with locked(out):
            yield
    except BlockingIOError:
        raise TrainingError(
            f"{out}: another training is writing there; wait for it, or name another folder"
        ) from None


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
        self.machines: list[dict[str, Any]] = []
        """On what it ran, and from which step."""
        on_gpu = model.device.type == "cuda"
        self.forward = model
        if on_gpu if config.compile is None else config.compile:
            self.forward = torch.compile(model)
        self.precision = nullcontext()
        if on_gpu and config.mixed_precision:
            self.precision = torch.autocast("cuda", torch.bfloat16)

    def resume(self, anyway: bool) -> None:
        """Take up the state of the folder, if it has one; else write the first.

        Raises TrainingError on the state of another run, and, unless `anyway` or it is finished, of
        another machine.
        """
        machine = machine_facts(self.model.device, self.model.dtype)
        before = state.read(self.out)
        if before is None:
            self._begin(machine)
            return
        about = before.about
        differences = state.differences(about["run"], self.described)
        if differences:
            raise TrainingError(
                f"{self.out} holds another run, {about['step']} steps on: {differences}. Give the "
                "same settings to go on with it, or another folder"
            )
        self.machines = about["machines"]
        changed = state.differences({"": self.machines[-1]}, {"": self.machines[-1] | machine})
        finished = about["step"] == self.config.steps
        if changed and not (anyway or finished):
            raise TrainingError(
                f"{self.out} holds a run, {about['step']} steps on, of another machine or code: "
                f"{changed}. It would not end in the numbers of an undisturbed run; to go on all "
                "the same: --resume-anyway (in Python resume_anyway=True)"
            )
        if changed and not finished:
            logger.warning("%s goes on from step %d, and %s", self.out, about["step"], changed)
            self.machines.append({"from_step": about["step"], **machine})
        before.restore(self.model, self.optimizer)
        self.step, self.log = about["step"], about["log"]
        gone = [
            step for step in self.config.kept if step < self.step and not self._kept(step).exists()
        ]
        if gone:
            logger.warning("%s: the models kept at steps %s were removed", self.out, gone)

    def _begin(self, machine: dict[str, Any]) -> None:
        strangers = [name for name in MODEL if (self.out / name).exists()]
        if strangers:
            raise TrainingError(
                f"{self.out} holds a model ({', '.join(strangers)}) and no state of a training: it "
                "would be overwritten. Name another folder"
            )
        self.machines = [{"from_step": 0, **machine}]
        with self._saving():
            self._keep()
            self._write_state()

    def go(self, stopped: Interrupts, bar: tqdm) -> None:
        """Train to the last step. A run that is finished already is written again from its state,
        which mends what is missing or damaged beside it."""
        config = self.config
        if self.step == config.steps:
            self._save()
        began, tokens = time.perf_counter(), 0
        while self.step < config.steps:
            loss, n = self.update()
            tokens += n
            self.step += 1
            rate = tokens / (time.perf_counter() - began)
            bar.update()
            bar.set_postfix_str(f"loss {loss:.3f}, {rate:,.0f} tokens/s")
            validate = self.step == config.steps or self.step % config.eval_every == 0
            if validate:
                self._log(loss, rate)
                bar.write(self._described())
            if validate or stopped:
                self._save()
            elif self.step in config.kept:
                with self._saving():
                    self._keep()
            if stopped:
                ending = (
                    "it is finished" if self.step == config.steps else "the same command goes on"
                )
                raise KeyboardInterrupt(
                    f"stopped after step {self.step} of {config.steps}; {ending}"
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
        """The model, the log, and last of all the state that vouches for them."""
        with self._saving():
            self._keep()
            save(self.model, self.out)
            text = pd.DataFrame(self.log).to_csv(index=False, lineterminator="\n")
            write_file(self.out / "log.csv", text.encode())
            self._write_state()

    def _keep(self) -> None:
        """A copy of the model, if it is to be kept at this step."""
        if self.step in self.config.kept:
            save(self.model, self._kept(self.step))

    def _kept(self, step: int) -> Path:
        return self.out / "checkpoints" / f"step-{step:07}"

    def _write_state(self) -> None:
        about = {"step": self.step, "run": self.described, "log": self.log}
        about["machines"] = self.machines
        state.write(self.out, self.model, self.optimizer, about)

    @contextmanager
    def _saving(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise TrainingError(
                f"step {self.step} could not be saved in {self.out} ({error}); what was saved "
                "before is whole. Make room and give the same command to go on"
            ) from error


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
        before = signal.getsignal(signal.SIGINT)
        in_main = threading.current_thread() is threading.main_thread()
        # Elsewhere Python delivers no signal, and a shell may have set it to be ignored.
        if in_main and before not in (signal.SIG_IGN, None):
            self._before = signal.signal(signal.SIGINT, self._ask)
        return self

    def __exit__(self, *_: object) -> None:
        if self._before is not None:
            signal.signal(signal.SIGINT, self._before)

    def _ask(self, *_: object) -> None:
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True
