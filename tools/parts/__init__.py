"""What several scripts and tests use. Scripts are one folder up, and none of them imports another."""
