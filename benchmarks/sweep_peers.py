"""Those that a sweep is measured beside: TransformerLens, nnsight, and the bound written by hand.

Each gives the values of some nodes of a job. What TransformerLens and nnsight do once, reading the
clean run, is kept between calls: it is not part of their time.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Protocol

import by_hand
import pandas as pd
import torch
import transformers
from cases import Job
from peers import TransformerLens
from tokenizers import Tokenizer, models
from torch import Tensor
from transformers import PreTrainedModel

TOKENS_PER_TRACE = 2048
"""16 nodes of 8 × 16 tokens, or four of 4 × 128, in one trace of nnsight."""


class SweepPeer(Protocol):
    """Whom a sweep is measured beside."""

    whole: bool
    """Whether it always runs all nodes of a job, in their order."""

    def runs(self, job: Job) -> bool: ...
    def values(self, job: Job, nodes: pd.DataFrame) -> Tensor: ...


BY_HAND = {"i": by_hand.resid_pre, "ii": by_hand.head_z}
COLUMNS = ["layer", "pos", "head", "neuron"]
"""By which TransformerLens numbers what it patches."""


class ByHand:
    """The lower bound; see `by_hand`."""

    whole = True

    def __init__(self, model: PreTrainedModel) -> None:
        self.weights = by_hand.Weights(model) if model.config.model_type == "gpt2" else None

    def runs(self, job: Job) -> bool:
        return job.name in BY_HAND and self.weights is not None

    @torch.inference_mode()
    def values(self, job: Job, nodes: pd.DataFrame) -> Tensor:
        question = by_hand.Question(job.clean, job.corrupted, job.answer, job.wrong)
        return BY_HAND[job.name](self.weights, question).flatten()


class Patching:
    """`transformer_lens.patching` on a bridge, one forward per node."""

    whole = False

    def __init__(self, model: PreTrainedModel) -> None:
        from transformer_lens import patching

        patching.tqdm = partial(patching.tqdm, disable=True)  # which has no option for that
        self.bridge = TransformerLens(model).bridge
        generic = patching.generic_activation_patch
        self.functions = {
            ("hook_resid_pre", "pos"): patching.get_act_patch_resid_pre,
            ("hook_attn_out", "pos"): patching.get_act_patch_attn_out,
            ("hook_mlp_out", "pos"): patching.get_act_patch_mlp_out,
            ("attn.hook_z", "head"): patching.get_act_patch_attn_head_out_all_pos,
            ("attn.hook_z", "pos head"): patching.get_act_patch_attn_head_out_by_pos,
            ("mlp.hook_post", "neuron"): partial(
                generic, patch_setter=patch_neuron, activation_name="post"
            ),
        }
        self.zero = partial(generic, patch_setter=zero_head, activation_name="z")
        self._clean: tuple[Job, Any] | None = None

    def runs(self, job: Job) -> bool:
        return True

    @torch.inference_mode()
    def values(self, job: Job, nodes: pd.DataFrame) -> Tensor:
        values = torch.empty(len(nodes), device=job.clean.device)
        nodes = nodes.reset_index(drop=True)
        for site, some in nodes.groupby("site", sort=False):
            index = some[COLUMNS].dropna(axis=1).astype(int)
            function = self.zero if job.loss else self.functions[site, " ".join(index.columns[1:])]
            values[torch.tensor(some.index)] = function(
                self.bridge, job.corrupted, self._cache(job, nodes), job.measure,
                index_axis_names=None, index_df=index,
            )  # fmt: skip
        return values

    def _cache(self, job: Job, nodes: pd.DataFrame) -> Any:
        if self._clean is None or self._clean[0] is not job:
            names = tuple(nodes["site"].unique())
            cache = self.bridge.run_with_cache(
                job.clean, names_filter=lambda name: name.endswith(names)
            )[1]
            self._clean = job, cache
        return self._clean[1]


def patch_neuron(corrupted: Tensor, index: Sequence[int], clean: Tensor) -> Tensor:
    corrupted[..., index[1]] = clean[..., index[1]]
    return corrupted


def zero_head(corrupted: Tensor, index: Sequence[int], clean: Tensor) -> Tensor:
    corrupted[:, :, index[1]] = 0
    return corrupted


class Nnsight:
    """nnsight's batched invokes: a trace runs the batch once per node, all in one forward."""

    whole = False

    def __init__(self, model: PreTrainedModel) -> None:
        from nnsight import TransformersModel

        words = Tokenizer(models.WordLevel({"[PAD]": 0}, unk_token="[PAD]"))  # ids are given
        tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=words, pad_token="[PAD]")
        self.model = TransformersModel(model, task="text-generation", tokenizer=tokenizer)
        self.d_head = model.config.hidden_size // model.config.num_attention_heads
        self.where = GPT2 if model.config.model_type == "gpt2" else LLAMA
        self._clean: tuple[Job, dict] | None = None

    def runs(self, job: Job) -> bool:
        return True

    @torch.inference_mode()
    def values(self, job: Job, nodes: pd.DataFrame) -> Tensor:
        clean = self._values_of(job, nodes)
        lines = [
            (self._module(line.site, line.layer), self.where[line.site][1], self._index(line),
             clean[line.site, line.layer])
            for line in nodes.itertuples()
        ]  # fmt: skip
        size = max(1, TOKENS_PER_TRACE // job.size)
        return torch.cat([self._trace(job, lines[i : i + size])
                          for i in range(0, len(lines), size)])  # fmt: skip

    def _trace(self, job: Job, lines: Sequence[tuple[Any, str, tuple, Tensor]]) -> Tensor:
        import nnsight

        model, measure = self.model, job.measure
        with model.trace() as tracer:
            found = nnsight.save([None] * len(lines))
            for i, (module, side, index, source) in enumerate(lines):
                with tracer.invoke(job.corrupted):
                    getattr(module, side)[index] = 0 if job.loss else source[index]
                    found[i] = measure(model.output.logits)
        return torch.stack(found)

    def _values_of(self, job: Job, nodes: pd.DataFrame) -> dict[tuple[str, int], Tensor]:
        """The clean run at each site and layer of the nodes."""
        if self._clean is None or self._clean[0] is not job:
            import nnsight

            # A trace meets the modules in the order of the forward.
            keys = sorted(set(zip(nodes["site"], nodes["layer"], strict=True)), key=self._order)
            with self.model.trace(job.clean):
                found = nnsight.save([])
                for site, layer in keys:
                    found.append(getattr(self._module(site, layer), self.where[site][1]).clone())
            self._clean = job, dict(zip(keys, found, strict=True))
        return self._clean[1]

    def _order(self, key: tuple[str, int]) -> tuple[int, int]:
        return key[1], list(self.where).index(key[0])

    def _module(self, site: str, layer: int) -> Any:
        return self.model.get(self.where[site][0].format(layer))

    def _index(self, line: Any) -> tuple:
        every = slice(None)
        column = every
        if not pd.isna(line.head):
            column = slice(line.head * self.d_head, (line.head + 1) * self.d_head)
        elif not pd.isna(line.neuron):
            column = line.neuron
        return every, every if pd.isna(line.pos) else line.pos, column


GPT2 = {
    "hook_resid_pre": ("transformer.h.{}", "input"),
    "attn.hook_z": ("transformer.h.{}.attn.c_proj", "input"),
    "hook_attn_out": ("transformer.h.{}.attn.c_proj", "output"),
    "mlp.hook_post": ("transformer.h.{}.mlp.c_proj", "input"),
    "hook_mlp_out": ("transformer.h.{}.mlp.c_proj", "output"),
}
"""A site's module and side, in the order of the forward."""
LLAMA = {
    "hook_resid_pre": ("model.layers.{}", "input"),
    "attn.hook_z": ("model.layers.{}.self_attn.o_proj", "input"),
    "hook_attn_out": ("model.layers.{}.self_attn.o_proj", "output"),
    "mlp.hook_post": ("model.layers.{}.mlp.down_proj", "input"),
    "hook_mlp_out": ("model.layers.{}.mlp.down_proj", "output"),
}

PEERS: dict[str, Callable[[PreTrainedModel], SweepPeer]] = {
    "by_hand": ByHand,
    "transformer_lens": Patching,
    "nnsight": Nnsight,
}
