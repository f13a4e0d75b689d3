"""Results moved out of the database into files, and back."""
