"""Reading models from disk: one file for each format that a user may have."""
