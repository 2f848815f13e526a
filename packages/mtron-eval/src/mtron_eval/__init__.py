"""Offline evaluation of checkpoints, with every number reproducible from the report."""
