"""What there is, and what it costs."""

from typing import Literal, get_args

Pizza = Literal["margherita", "hawaii", "funghi"]

PRICES = {"margherita": 8.0, "hawaii": 9.0, "funghi": 8.5}

assert set(PRICES) == set(get_args(Pizza))
