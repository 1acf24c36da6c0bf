"""Dense captions: the loss of true ones, and made ones judged by a language model against what people said."""
