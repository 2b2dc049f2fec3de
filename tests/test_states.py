"""What the captions say of defective states, and how far towards them an image goes, against slow twins."""

import numpy as np
import pytest
import torch
from made_cases import scenes as made_scenes  # noqa: F401
