"""params.yaml as a whole: every section, what they say of one another, and what is generated from them."""
