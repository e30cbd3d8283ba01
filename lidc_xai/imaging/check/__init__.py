"""``check_ct``: look before computing."""
