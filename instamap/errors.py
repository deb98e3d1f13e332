"""The errors a user can cause: each names the object, its value and the remedy."""


class InstamapError(Exception):
    """Base of all of them; the command line prints it as one line and exits with code 2."""


class DataError(InstamapError):
    """Particles, images, masks or maps that cannot be used as they are."""


class OptionError(InstamapError):
    """An option that does not exist, is repeated, or has a value that is not allowed."""


class PartError(InstamapError):
    """A part (representation, forward operator, ...) that is unknown, broken or defined twice."""


class CompositionError(InstamapError):
    """Parts that do not fit each other or the data."""


class OutputError(InstamapError):
    """An output folder or file that cannot be written."""
