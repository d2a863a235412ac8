"""Parts of `head_ablation`."""
