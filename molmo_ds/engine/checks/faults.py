"""What ends a run although nobody made a mistake in its settings: told in one sentence, before anything is saved."""


class TrainingFault(RuntimeError):
    """A run that must not go on; its message is one sentence for the user."""


class GradientOrderError(TrainingFault):
    """Gradients became ready in another order than on another rank, or than in the step before."""


class NotFiniteError(TrainingFault):
    """A loss or a gradient norm is NaN or infinite."""
