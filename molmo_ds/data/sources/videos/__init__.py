"""The public data sets of videos, by family; those of Molmo2 itself are in `sources/molmo2.py`."""
