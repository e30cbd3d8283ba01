"""The PNG edition of LIDC-IDRI: its files, which nodule each shows, and its grey levels as HU."""
