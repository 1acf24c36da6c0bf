"""Answers: generation from a prompt."""
