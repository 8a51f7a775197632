"""Assembly, packed forward pass, attention back ends and adapters."""
