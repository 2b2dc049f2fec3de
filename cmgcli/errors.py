"""The tree of errors that cmg raises on purpose. Imports nothing.

CmgError
├── InputError            something the user pointed at cannot be used
│   ├── DatasetError      a caption file, a label file or a folder layout
│   └── ImageError        one image or mask file
├── EncoderError          weights that are missing, damaged or of another model
├── CheckpointError       a model file that is damaged or does not fit
├── SettingsError         an option, or two options that exclude each other
├── OutputError           a result that cannot be written
└── RankError             another process of the same fit that is gone

A message says what was expected, what came, and what to do next. Foreign exceptions are translated where they
arise, with ``raise ... from``; the command line catches `CmgError` once, prints one line and exits with 2.
"""


class CmgError(Exception):
    """Base of every error that cmg raises on purpose."""


class InputError(CmgError):
    """Something the user pointed at cannot be used."""


class DatasetError(InputError):
    """A caption file, a label file or a folder layout cannot be used."""


class ImageError(InputError):
    """One image or mask file cannot be used."""


class EncoderError(CmgError):
    """Encoder weights are missing, damaged or belong to another model."""


class CheckpointError(CmgError):
    """A model file is damaged, or does not fit this program or encoder."""


class SettingsError(CmgError):
    """An option has an impossible value, or two options exclude each other."""


class OutputError(CmgError):
    """A result cannot be written where the user asked for it."""


class RankError(CmgError):
    """Another process of the same fit, which torchrun started with this one, has ended."""


def check_count(name: str, value: int, least: int, most: int | None = None) -> int:
    """The value of a setting; SettingsError where it is no whole number from ``least`` up, or above ``most``."""
    if isinstance(value, bool) or not hasattr(value, "__index__") or value < least or (most is not None and value > most):
        to = "up" if most is None else f"to {most}"
        raise SettingsError(f"{name}: expected a whole number from {least} {to}, got {value!r}")
    return value


def check_batch_size(batch_size: int | str) -> int | str:
    """How many images to take at once; SettingsError where it is neither ``auto`` nor a whole number from 1 up."""
    if batch_size == "auto":
        return batch_size
    try:
        return check_count("batch size", batch_size, 1)
    except SettingsError:
        raise SettingsError(f"batch size: expected auto or a whole number from 1 up, got {batch_size!r}") from None


def is_out_of_memory(error: BaseException) -> bool:
    """True for the error of an allocation that failed, in whichever of their ways Python, torch, CUDA and oneDNN say it."""
    words = ("out of memory", "can't allocate memory", "ALLOC_FAILED", "could not create a primitive", "could not create a memory object")
    return isinstance(error, MemoryError) or any(word in str(error) for word in words)


def first_line(error: BaseException) -> str:
    """What an error says, without the rest of what it says."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
