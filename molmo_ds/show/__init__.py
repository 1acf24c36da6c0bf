"""A page over a run's folder: curves, samples, answers, checkpoints, and what happened to it."""
