"""The mistakes that ports of MobileVLM make, each as a change of the reference. `all.MISTAKES` lists them."""
