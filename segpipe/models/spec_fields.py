"""What the values in a model's description may be."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

# Of values of 0 to 1, or of 0 to 255 brought there by the deviation alone.
Mean = Annotated[float, Field(ge=-10, le=10, allow_inf_nan=False)]
Deviation = Annotated[float, Field(ge=0.001, le=10, allow_inf_nan=False)]
ClassName = Annotated[str, Field(min_length=1, max_length=1000, pattern=r"^[^\x00-\x1f\x7f]*$")]
Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
