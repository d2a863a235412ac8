"""Parts of `attention_heads`."""
