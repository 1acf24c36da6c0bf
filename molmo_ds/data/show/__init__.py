"""A page that shows what training makes of a data set."""
