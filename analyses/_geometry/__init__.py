"""Parts of `embedding_geometry`."""
