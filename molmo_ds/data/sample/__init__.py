"""A record to tensors: annotations, prompts, tokens, trees and pictures."""
