"""Parts of `logit_lens`."""
