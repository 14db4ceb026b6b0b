"""LiteRT files: read, described, made smaller, run. Nothing here needs TensorFlow."""
