"""The kernels themselves, in the Python that Numba compiles. What calls them is `mvlm_np.kernels`."""
