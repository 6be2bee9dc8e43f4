"""Small tables that the package reads: each names its source and licence."""
