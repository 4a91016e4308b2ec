"""WebDataset shards that featgan has not written: their tars, members and labels, as a source of images."""
