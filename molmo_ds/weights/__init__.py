"""Weights in files: folders of tensors, names, checkpoints."""
