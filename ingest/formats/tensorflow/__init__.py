"""TensorFlow files: SavedModels, checkpoints and frozen graphs."""
