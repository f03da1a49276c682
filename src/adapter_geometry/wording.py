"""Numbers in sentences.

Before all modules that write notes, summaries or messages; it imports nothing of the package.
"""


def counted(number: int, what: str) -> str:
    """A number and what is counted, in the plural for more than one.

    >>> counted(1, "module"), counted(3, "module")
    ('1 module', '3 modules')
    """
    return f"{number} {what}{'s' if number > 1 else ''}"


def span(least: object, largest: object) -> str:
    """From the least to the largest of some numbers, or their one value.

    >>> span(8, 16), span(8, 8)
    ('8 to 16', '8')
    """
    return str(least) if least == largest else f"{least} to {largest}"
