"""Raw VQA sets to samples, translation and tar shards; knows nothing of torch."""
