"""Bases that are quantised: what is read of them, and what quantising makes of a plain one."""
