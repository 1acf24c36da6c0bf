"""What tests and tools/bench share: ranks, the one-process oracle, batches, run files, a laboratory of hosts."""
