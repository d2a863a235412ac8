"""Parts of `activation_patching`."""
