"""Evaluation by generation: tasks, their scores, and the run over a checkpoint."""
