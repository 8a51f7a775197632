"""The methods of training, one file a family: its options and how it wraps a model."""
