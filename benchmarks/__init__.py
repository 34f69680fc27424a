"""What the fast paths are worth: ratios against the published way of doing the same work."""
