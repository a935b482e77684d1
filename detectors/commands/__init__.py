"""The commands of `jol`, a file each: `add(subparsers)` declares one, `run(args)` does it."""
