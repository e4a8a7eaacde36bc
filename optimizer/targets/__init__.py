"""What each engine and device wants and can compute, as data."""
