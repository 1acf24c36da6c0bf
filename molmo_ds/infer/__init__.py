"""Answers to prompts: KV slots, their schedule, and replicas over ranks."""
