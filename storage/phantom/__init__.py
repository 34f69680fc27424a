"""Synthetic scans, for trying everything without data; nothing outside needs them.

A head is drawn (`anatomy`), falls ill (`lesions`), is scanned (`scanner`) and becomes a subject
(`draw`), which is written in one of the forms (`as_brats`, `as_nnunet`) by `write`.
"""
