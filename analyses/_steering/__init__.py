"""Parts of `steering`."""
