"""How counts and versions are said."""


def counted(count: int, noun: str) -> str:
    """`1 image`, `2 images`; the noun stands in the singular, and its last word takes the s."""
    return f"{count} {noun}{'' if count == 1 else 's'}"


def installed_version(package: str) -> str:
    """Its version, or that it has none: a source tree can be run without being installed."""
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version(package)
    except PackageNotFoundError:
        return "(not installed as a package)"
