"""Every tolerance of this package's tests; they are only ever tightened."""

FP64 = 1e-12  # relative to the largest element: the same formula written otherwise
FP32_ORTHOGONAL = 2e-5  # absolute, entries of an orthogonal factor against fp64
FP32_ILL_CONDITIONED = 3e-3  # relative 2-norm, singular values over five decades, against fp64
FP32_PRODUCT = 2e-6  # relative to the largest element, against fp64
FP32_LOSS = 2e-6  # relative, compiled against plain
FP32_GRADIENT = 2e-5  # relative 2-norm, compiled against plain
BF16_ORTHOGONAL = 0.1  # relative 2-norm, one factor in bf16 against fp32
BF16_TRAINED = 2e-2  # relative to the way gone in ten steps, against torch's Muon in bf16
JORDAN_SINGULAR_VALUES = (0.66, 1.22)  # where the quintic leaves those above 1 percent
POLAR_EXPRESS_SINGULAR_VALUES = 1e-3  # from 1, after 8 iterations
