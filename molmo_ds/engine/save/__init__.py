"""Saving and resuming: files written beside the training, and read again on any number of ranks."""
