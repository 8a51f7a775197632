"""The demo's own parts: tiny models, the English base that stands in for a pretrained LLaVA, its kept weights."""
