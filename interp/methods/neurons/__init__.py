"""MLP neurons: when they fire and what they say (`firing`), and what a task loses without them
(`removal`)."""

from .firing import (
    SITE,
    NeuronId,
    checked_neurons,
    neuron_ids,
    neuron_logits,
    neuron_nodes,
    neuron_stats,
    promoted_tokens,
    top_activations,
)
from .removal import (
    Ranking,
    layer_effects,
    rank_neurons,
    set_effects,
    sets_against_random,
)

__all__ = [
    "SITE",
    "NeuronId",
    "Ranking",
    "checked_neurons",
    "layer_effects",
    "neuron_ids",
    "neuron_logits",
    "neuron_nodes",
    "neuron_stats",
    "promoted_tokens",
    "rank_neurons",
    "set_effects",
    "sets_against_random",
    "top_activations",
]
