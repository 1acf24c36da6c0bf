"""What a run measures of its network now and then: losses of held-out sources, and answers to tasks."""
