"""What a side raises where its library cannot do what is asked."""


class Unsupported(Exception):
    """The library has no such dtype, model or search."""
