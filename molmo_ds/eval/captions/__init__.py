"""Dense captions judged by a language model: recall, consistency and repetition against what people said."""
