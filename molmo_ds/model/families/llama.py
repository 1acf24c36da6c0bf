"""Llama 2 and 3: RMSNorm before each branch, no biases."""

from molmo_ds.model.families.decoder import Decoder

FAMILY = Decoder()
