"""The weather application: a PuYun-style cascade that anyone can train, run and score (outer ring)."""
