"""Many questions about many pictures: what a row is, and how rows are answered together."""
