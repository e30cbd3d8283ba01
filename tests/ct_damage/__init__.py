"""Ways to damage a series of CT slices; ``imaging/test_ct_faults.py`` says what each must come to."""
