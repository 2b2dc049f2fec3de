"""How counts and versions are said, and what more than one command says."""


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


def misfit(count: int, total: int, first: str) -> str:
    """What to say of so many images of a run, the first by name, in which CMER went without the caption; see `view.guided`."""
    return (
        f"the caption fits nothing in {count} of {counted(total, 'image')}, first {first}: it names something else, or in words that the encoder does not know; "
        "there CMER looks for whatever lies on the ground"
    )
