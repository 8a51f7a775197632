"""The look that pages share, and their charts."""
