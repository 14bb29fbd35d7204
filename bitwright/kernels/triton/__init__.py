"""Kernels for accelerators that Triton compiles for. Imported only where such a device is used."""
