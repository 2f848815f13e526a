"""The DeepSeek-V3 family: latent attention, many small experts, prediction of several tokens."""
