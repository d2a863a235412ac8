"""What is measured of a model, one file or folder per method: model and data in, frame out."""
