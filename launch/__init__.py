"""Submit featgan jobs to a cluster and monitor them."""
