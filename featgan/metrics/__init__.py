"""What a generator did, in numbers: pure functions on arrays of features, outputs and images, each with an interval."""
