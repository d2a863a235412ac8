"""What a piece of work needs of a model, as data, and whether a model has it.

An analysis declares `NEEDS = Needs(logits=True, one_stack=True)`. The same words then refuse a
model at the start of a run and stand beside the analysis in `interp list --model`, which reads the
model's config and not its weights. What an option alone asks for (neurons of a layer that has none)
is refused by the analysis.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass

from interp.core.config import TransformerConfig
from interp.core.tokenizer import has_tokenizer
from interp.core.visible import visible_errors
from interp.model import HookedTransformer

from .assemble import with_stored_head
from .families import read_config
from .files import config_values, locate, weight_entries


@dataclass(frozen=True)
class Abilities:
    """What can be asked of a model, known without running it."""

    name: str
    cfg: TransformerConfig
    tokenizer: bool
    """Whether it has one."""
    opaque: str | None = None
    """Why no engine can enter the middle of a run; None: one can."""

    @property
    def inputs(self) -> str:
        """What a sequence is made of; of an encoder–decoder, that which the encoder reads."""
        return (self.cfg.encoder or self.cfg).inputs


def abilities(model: HookedTransformer) -> Abilities:
    """What can be asked of a model that is loaded."""
    return Abilities(model.name, model.cfg, model.tokenizer is not None, model.opaque)


@visible_errors()
def stored_abilities(name: str | os.PathLike) -> Abilities:
    """What could be asked of a model that `load` would open, from its small files alone.

    A masked-LM head is looked for among the tensors' names; of a hub model the config is believed,
    because its weights may not be here. Raises ValueError as `load` does on a name that leads
    nowhere and on a config that cannot be read.
    """
    source = locate(name)
    family, cfg = read_config(config_values(source), f"{source.folder / 'config.json'}")
    if cfg.head == "mlm" and source.kind != "hub":
        cfg = with_stored_head(family, cfg, weight_entries(source))
    return Abilities(source.name, cfg, has_tokenizer(source.folder))


@dataclass(frozen=True, kw_only=True)
class Needs:
    """What must be true of a model. A field that is False asks for nothing."""

    text: bool = False
    """It reads text: token ids, not images or sound. Of an encoder–decoder the encoder counts."""
    tokenizer: bool = False
    """It has a tokenizer."""
    wordless: tuple[str, str] | None = None
    """An option and its value, such as ("task", "induction"), with which no tokenizer is needed."""
    logits: bool = False
    """It gives logits, from which an answer can be read."""
    continues: bool = False
    """It can continue a text: logits of the next token, no token sees those to its right."""
    one_stack: bool = False
    """It is no encoder–decoder."""
    neurons: bool = False
    """Its layers have MLPs."""
    native: bool = False
    """It runs here, not behind the bridge: queries, keys and norms can be reached."""

    def lacking(self, model: Abilities, config: object = None) -> str | None:
        """The first thing that the model lacks, in words that follow its name; None: it has all.

        config: the options of the run; without them they are at their defaults.
        """
        for name, lacks in LACKING.items():
            reason = lacks(model) if getattr(self, name) else None
            if reason is None:
                continue
            if name != "tokenizer" or self.wordless is None:
                return reason
            option, value = self.wordless
            if getattr(config, option, None) != value:
                return f"{reason} (--{option} {value} needs none)"
        return None

    def check(self, model: Abilities | HookedTransformer, work: str, config: object = None) -> None:
        """Raises ValueError where the model lacks what `work` needs, such as "neurons"."""
        known = model if isinstance(model, Abilities) else abilities(model)
        reason = self.lacking(known, config)
        if reason is not None:
            raise ValueError(
                f"{work} cannot run on {known.name}: it {reason}; "
                "`interp list --model MODEL` marks what can run on a model"
            )


def _no_text(model: Abilities) -> str | None:
    return None if model.inputs == "tokens" else f"reads {model.inputs}, not text"


def _no_tokenizer(model: Abilities) -> str | None:
    return None if model.tokenizer else "has no tokenizer, so it cannot read words"


def _no_logits(model: Abilities) -> str | None:
    none = "gives no logits (head='none'), so no answer can be read from it"
    return none if model.cfg.head == "none" else None


def _no_next_token(model: Abilities) -> str | None:
    if model.cfg.head != "unembed":
        return f"writes no next token (head={model.cfg.head!r})"
    return None if model.cfg.causal else "attends both ways (causal=False) and continues no text"


def _two_stacks(model: Abilities) -> str | None:
    return None if model.cfg.encoder is None else "is an encoder–decoder, which has two stacks"


def _no_neurons(model: Abilities) -> str | None:
    return None if model.cfg.d_mlp else "has no MLPs (d_mlp=0), so it has no neurons"


def _not_native(model: Abilities) -> str | None:
    inside = "cannot be entered in the middle of a run"
    return f"{inside}: {model.opaque}" if model.opaque else None


LACKING: dict[str, Callable[[Abilities], str | None]] = {
    "text": _no_text,
    "tokenizer": _no_tokenizer,
    "logits": _no_logits,
    "continues": _no_next_token,
    "one_stack": _two_stacks,
    "neurons": _no_neurons,
    "native": _not_native,
}
"""For each need what a model that does not have it lacks; None where it has it."""
