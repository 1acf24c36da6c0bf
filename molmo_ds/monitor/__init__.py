"""What a run tells of itself: metrics, floating-point operations, profiles."""
