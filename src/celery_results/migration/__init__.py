"""Move results between stores: copy them raw, and compare them."""
