"""Labelled splits measured: masks and scores, the certified policy, a candidate against the model in use."""
