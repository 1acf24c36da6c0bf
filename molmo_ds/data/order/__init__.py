"""Which sample stands where: lanes, mixtures, packing and the stream of batches."""
