"""From what a user names to examples: files, directories, the hub, and the splits of each."""
