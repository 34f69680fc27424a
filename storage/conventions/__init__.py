"""How a data set lies on disk: a file a convention, a line in `registry`, one shared test suite.

Here names become `ScanFiles`; nothing in here reads voxels, and nothing outside knows file names.
"""
