"""Bytes and times that a run or a replica will need, counted before it starts."""
