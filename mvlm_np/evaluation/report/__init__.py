"""What a run of a benchmark shows, alone and beside another run, as a page and as numbers."""
