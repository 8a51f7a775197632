"""What a CUDA GPU reaches in training, beside what it can do at all."""
