"""The comparison with llama.cpp: what is measured, with which programs, and the table of it."""
