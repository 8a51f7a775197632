"""Forms that others take a model or an adapter in, and the way to a hub."""
