"""Files of particles as programs write them; each becomes one particle table."""

from instamap.data.formats.recognise import read

__all__ = ["read"]
