"""Translation of a dataset's texts; images and keys stay as they are."""
