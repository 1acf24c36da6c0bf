"""The files that an exported folder has besides the package's own: configuration, model and processor."""
