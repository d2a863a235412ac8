"""Parts of `probe_layers`."""
