"""What attention heads do, in numbers: where they look, what they copy, who feeds whom, and what
may be called by a name.

Frames only, one row per head, pair of heads, or head and role; scores are descriptions, not causes:
ask `ablate` or `patch` whether a head matters.
"""

from .circuits import COMPOSITIONS, composition, copying, head_scores
from .looks import LOOKS, attention_scores, random_repeats, role_attention
from .outputs import promoted_tokens
from .roles import ROLES, head_labels, head_roles

__all__ = [
    "COMPOSITIONS",
    "LOOKS",
    "ROLES",
    "attention_scores",
    "composition",
    "copying",
    "head_labels",
    "head_roles",
    "head_scores",
    "promoted_tokens",
    "random_repeats",
    "role_attention",
]
