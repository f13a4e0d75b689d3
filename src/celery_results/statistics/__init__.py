"""What is in the result database: counts, sizes, ages, growth."""
