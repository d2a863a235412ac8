"""Old checkpoints, TransformerLens 1–3 and nanoGPT, written as folders that `load` opens."""
