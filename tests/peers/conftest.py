collect_ignore = ["scripts"]  # programs of the peers' environment
