"""Every option: declared once, turned into click options, trainer flags and argument lists."""
