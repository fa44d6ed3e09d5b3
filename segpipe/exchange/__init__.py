"""Accepted masks as data sets that other tools load."""
