"""Other people's pictures and texts to shards: what is read, what is passed over, what cannot be used."""
