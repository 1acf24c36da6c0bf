"""Folders in buckets: written through a local one, whole or not at all, by one writer at a time."""
