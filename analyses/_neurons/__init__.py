"""Parts of `neurons`."""
