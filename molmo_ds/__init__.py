"""molmo_ds trains Ai2's multimodal model family Molmo with DeepSpeed."""
