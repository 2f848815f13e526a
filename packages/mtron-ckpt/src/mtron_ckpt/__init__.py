"""Sharded, checksummed, layout-independent checkpoints and format conversion. No torch needed."""
