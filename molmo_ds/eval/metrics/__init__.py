"""How one reply is scored, one file for each kind of question: pure functions of texts, and of a reply and its row."""
