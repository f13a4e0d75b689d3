"""An application as a user of the bundle writes it."""
