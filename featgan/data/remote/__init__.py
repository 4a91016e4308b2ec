"""Files of a data set that are not on the disk of this machine: downloads and the cache of the node."""
