"""Llama 2 and 3: RMSNorm before each branch, no biases.

Source: huggingface/transformers v5.23.0, src/transformers/models/llama/modeling_llama.py.
"""

from molmo_ds.model.families.decoder import Decoder

FAMILY = Decoder()
