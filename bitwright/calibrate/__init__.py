"""What the model sees while it is compressed: data, statistics, the walk."""
