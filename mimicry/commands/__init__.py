"""The subcommands of `mimicry` that have no room of their own."""
