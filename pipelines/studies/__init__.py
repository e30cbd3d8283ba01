"""The studies of four papers on photographs, and the code that only they use."""
