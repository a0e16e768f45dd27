"""The online service's package. It holds nothing yet: explanations are made in batches, or one by one in a process."""
