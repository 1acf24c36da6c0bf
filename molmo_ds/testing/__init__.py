"""Helpers of tests and tools/bench: ranks, the one-process oracle, batches, run files, a laboratory of hosts."""
