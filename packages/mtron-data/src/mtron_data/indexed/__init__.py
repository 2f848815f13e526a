"""Megatron's `.bin/.idx` pair: its layout, a writer, a memory-mapped reader, and `verify`."""
