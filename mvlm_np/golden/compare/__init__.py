"""`mvlm golden compare`: which stage of another implementation is the first that is wrong, and where."""
