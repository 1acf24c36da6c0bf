"""Tar shards to batches: reading, order, prompts, pictures, packing."""
