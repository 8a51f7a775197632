"""The model: configuration, assembly, data plan, training, evaluation, report and merge."""
