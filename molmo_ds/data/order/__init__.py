"""The order of samples: lanes, mixtures, packing and the stream of batches."""
