"""Work-arounds for the compiler."""
