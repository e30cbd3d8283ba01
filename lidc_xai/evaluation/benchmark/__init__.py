"""Methods × metrics × outputs over any iterable of cases, and the tables of what came out."""
