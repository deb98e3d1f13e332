"""Whole procedures: from settings and files to a map, a motion or corrected poses, and their
records.
"""
