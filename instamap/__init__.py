"""instamap: density maps from cryo-EM particle images with known poses, as fitted real-space
fields.
"""

from importlib.metadata import version

__version__ = version("instamap")
