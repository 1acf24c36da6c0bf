"""The files that an exported folder has in addition to the package's own: configuration, model and processor."""
