"""Bytes at rest: scans, slices, splits, run folders; nothing here computes a network."""
