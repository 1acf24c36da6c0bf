"""Starts the ranks of a run on its hosts and watches over them."""
