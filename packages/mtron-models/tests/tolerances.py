"""Every tolerance of this package's tests; they are only ever tightened."""

FP32_LOGITS = 5e-6  # absolute, against Hugging Face
FP32_GRADIENT = 4e-6  # of the larger of the gradient's norm and 0.01 of the largest norm
FP32_COMPILED = 2e-6  # relative and absolute, compiled against eager
FP32_OP = 2e-6  # relative and absolute, an op against another implementation
FP64_OP = 1e-13  # relative and absolute
BF16_OP = 1e-2  # relative and absolute, against fp32 on the same inputs
FP64_CACHED = 1e-12  # absolute, cached decoding against the full forward
FP32_CACHED = 1e-5  # absolute, the same in fp32
FP64_CHUNKED = 1e-13  # relative, loss and gradients with other chunk sizes
