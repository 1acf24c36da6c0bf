"""Reports of a run: metrics, floating-point operations, profiles."""
