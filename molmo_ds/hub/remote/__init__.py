"""What an exported folder adds around the package's own files: transformers' configuration, model and processor."""
