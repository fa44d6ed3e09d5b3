"""People decide: what is asked of them, how their decisions come back, and what they are worth."""
