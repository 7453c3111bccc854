"""`mvlm golden record`: every stage of one run, and how far rounding alone carries each of them."""
