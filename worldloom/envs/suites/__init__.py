"""One module per family of environments; each has ``make(config)``."""
