"""What every stage stands on: errors, params.yaml's loader, files and their hashes, shards, processes, devices."""
