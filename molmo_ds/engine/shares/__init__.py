"""What each rank of a group holds: of the decoder, and of the pictures of a batch; training and answering share it."""
