"""The mistakes that ports of MobileVLM make: a function for each, in the file of the part it is made in."""
