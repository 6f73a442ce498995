"""The command line, `hf-mass`.

`main` and `commands` hold the options and their help and load nothing heavy. What a command does stands in modules that
are imported when it runs, so help, version and usage errors come at once.
"""
