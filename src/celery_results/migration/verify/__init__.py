"""Compare two stores result by result, by other ways than those of the copy."""
