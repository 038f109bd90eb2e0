"""Episodes in files of other programs: a module per format, and :mod:`.episode_files` for all."""
