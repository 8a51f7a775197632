"""From samples to packed micro-batches: template, documents, plan, loader."""
