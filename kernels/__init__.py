"""The fast twins of `mvlm_np.ops`, compiled by Numba. Installed and imported as `mvlm_np.kernels`."""
