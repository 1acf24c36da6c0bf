"""Errors that end a run although its settings are right: one sentence each, before anything is saved."""


class TrainingFault(RuntimeError):
    """A run that must not continue; its message is one sentence for the user."""


class GradientOrderError(TrainingFault):
    """Gradients became ready in another order than on another rank, or than in the step before."""


class NotFiniteError(TrainingFault):
    """A loss or a gradient norm is NaN or infinite."""
