"""A rank's share of a network that answers: its layout, its collectives, its rounded weights."""
