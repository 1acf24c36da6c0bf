"""Real code at real size with nothing real behind it: files that are counted, and ranks that stand in for others."""
