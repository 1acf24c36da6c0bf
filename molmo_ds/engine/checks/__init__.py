"""Checks that ranks agree, and the errors where they do not."""
