"""The six benchmarks of the MobileVLM papers: what is asked, and what the answers are worth."""
