"""Image-text sets as they are published: one file a format, each a function that turns a place into a `Source`."""
