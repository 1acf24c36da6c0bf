"""Saving and resuming: files written during training, and read again on any number of ranks."""
