"""Merge an adapter into its base, in memory for a few blocks of rows."""
