"""Loss and error of a network on a split, on single crops, ten crops or mirror images."""
