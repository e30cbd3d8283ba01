"""The store of crops on disk: a folder per nodule, tables over all of them, a fingerprint."""
