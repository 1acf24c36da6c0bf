"""Released Hugging Face folders, both ways; model code to go with them."""
