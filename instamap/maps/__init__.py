"""Maps: files, masks, resolution and pictures."""
