"""From bytes of a picture to crops and the tokens that stand for them in a text."""
