"""Models over cores, in plain torch."""
