"""Language models written as plain single-device PyTorch, with the seams at which parallelism, kernels and caches attach."""
