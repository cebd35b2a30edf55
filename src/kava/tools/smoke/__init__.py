"""Does everything work on this machine? Small real runs of every component, each with what it measured and a cure."""
