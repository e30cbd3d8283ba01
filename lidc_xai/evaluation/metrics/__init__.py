"""One file per metric, named after it; a file that holds a function of its own name is private."""
