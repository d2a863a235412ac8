"""Models at hand. `from interp.zoo import planted; planted.induction()`."""
