"""Tars: an indexed reader and a writer."""
