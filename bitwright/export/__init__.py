"""Where the result goes: state dict in, state dict out; every export is read back."""
