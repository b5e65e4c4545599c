"""What the Triton kernels of several operators share: scores of states and items, launch options, small helpers."""
