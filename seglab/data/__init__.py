"""Cases, the reader of images and masks, splits, the cache and the DataModule."""
