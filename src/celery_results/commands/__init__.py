"""The verbs: each module here is one, and exposes a click command named ``command``."""
