"""Made-up pictures in the layout of every data set of the multitask mixture, for rehearsals without a download."""
