"""The network: one definition, which every strategy runs."""
