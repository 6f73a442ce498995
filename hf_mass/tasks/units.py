"""Units of quantities: 5 km is not 5 m, but 5000 m. What is no unit known here says nothing."""

from __future__ import annotations

import re
from fractions import Fraction

_SPELLINGS = {
    "mm": "mm millimeter millimeters millimetre millimetres",
    "cm": "cm centimeter centimeters centimetre centimetres",
    "m": "m meter meters metre metres",
    "km": "km kms kilometer kilometers kilometre kilometres",
    "in": "in inch inches",
    "ft": "ft foot feet",
    "yd": "yd yds yard yards",
    "mi": "mi mile miles",
    "ms": "ms millisecond milliseconds",
    "s": "s sec secs second seconds",
    "min": "min mins minute minutes",
    "h": "h hr hrs hour hours",
    "day": "d day days",
    "week": "wk wks week weeks",
    "month": "month months",
    "year": "yr yrs year years",
    "mg": "mg milligram milligrams",
    "g": "g gram grams",
    "kg": "kg kgs kilo kilos kilogram kilograms",
    "oz": "oz ounce ounces",
    "lb": "lb lbs",
    "pound": "pound pounds",
    "ml": "ml milliliter milliliters millilitre millilitres",
    "l": "l L liter liters litre litres",
    "gal": "gal gallon gallons",
    "mph": "mph",
    "kmph": "kmph kph",
    "Hz": "hz",
    "N": "N newton newtons",
    "J": "J joule joules",
    "W": "W watt watts",
    "kW": "kw kilowatt kilowatts",
    "kWh": "kwh",
    "V": "V volt volts",
    "A": "A ampere amperes amp amps",
    "°C": "C °C celsius",
    "°F": "F °F fahrenheit",
    "°": "° deg degree degrees",
    "rad": "rad radian radians",
    "%": "% percent pct",
    "‰": "‰ permille",
    "$": "$ dollar dollars usd buck bucks",
    "¢": "¢ cent cents",
    "€": "€ euro euros eur",
    "£": "£ gbp quid sterling",
    "¥": "¥ yen jpy yuan cny",
    "₹": "₹ rupee rupees inr",
}
_NAMES = {spelling: name for name, spellings in _SPELLINGS.items() for spelling in spellings.split()}
_SIZES = {
    **{name: ("length", size) for name, size in (("mm", "0.001"), ("cm", "0.01"), ("m", "1"), ("km", "1000"))},
    **{
        name: ("length", size)
        for name, size in (("in", "0.0254"), ("ft", "0.3048"), ("yd", "0.9144"), ("mi", "1609.344"))
    },
    **{name: ("time", size) for name, size in (("ms", "0.001"), ("s", "1"), ("min", "60"), ("h", "3600"))},
    **{name: ("time", size) for name, size in (("day", "86400"), ("week", "604800"))},
    **{name: ("mass", size) for name, size in (("mg", "0.001"), ("g", "1"), ("kg", "1000"))},
    **{name: ("mass", size) for name, size in (("oz", "28.349523125"), ("lb", "453.59237"))},
    **{name: ("volume", size) for name, size in (("ml", "0.001"), ("l", "1"))},
    **{name: ("dollars", size) for name, size in (("¢", "0.01"), ("$", "1"))},
}
"""Unit → what it measures, and how much of that."""
_SPEEDS = {"mph": ("mi", "h"), "kmph": ("km", "h")}
_AMBIGUOUS = ({"pound", "£"}, {"pound", "lb"})
_CURRENCIES = "$¢€£¥₹"
_SINGLE = "".join(name for name in _NAMES if len(name) == 1)
_WORDS = "|".join(sorted((re.escape(name) for name in _NAMES if len(name) > 1), key=len, reverse=True))
_NAME = rf"(?:(?i:{_WORDS})|[{re.escape(_SINGLE)}])"
_POWER = "[⁻⁰¹²³⁴⁵⁶⁷⁸⁹]{1,4}"
_UNIT = re.compile(
    rf"\s?-?(?:(?i:(?P<prefix>square|sq\.?|cubic|cu\.?))\s)?(?P<name>{_NAME})(?P<power>{_POWER})?(?!\w)"
    rf"(?:\s?(?P<by>/|per\b|an?\b|each\b|every\b)\s?(?P<per>{_NAME})(?P<per_power>{_POWER})?(?!\w))?"
)
_PREFIXES = {"s": "²", "c": "³"}
POWERED = re.compile(rf"(?<![^\W\d_])(?=[^\W\d_])({_NAME})(\^[-+]?\d|[23])(?![\w.])")
"""A unit and its power, as in cm^3 and cm3."""

Unit = tuple[str, str]
"""What is counted and what it is counted by: ("m", "s²"), ("cm³", ""), ("", "") where nothing is said."""
NO_UNIT: Unit = ("", "")


def unit_at(text: str, place: int, currency: str = "") -> Unit:
    """The unit after the number that ends at this place, or of the currency sign before it; powers are superscripts.

    What a sum of money is paid by ("$5 per day") is not part of its unit: an answer may say it or not.
    """
    found = _UNIT.match(text, place)
    if currency:
        return (_name(currency.strip()[-1:]), "")
    if found is None:
        return NO_UNIT
    name = _name(found["name"])
    if name in _CURRENCIES:
        return (name, "")
    if name in _SPEEDS:
        return _SPEEDS[name]
    power = found["power"] or _PREFIXES.get((found["prefix"] or "")[:1].lower(), "")
    return (name + power, _name(found["per"]) + (found["per_power"] or "") if found["per"] else "")


def size_in(first: Unit, second: Unit) -> Fraction | None:
    """How many of the second unit the first is; None if they measure different things. A unit not said is the other's.

    Of units known here by name alone, such as °C, only the same one compares.
    """
    if NO_UNIT in (first, second) or first == second or {first[0], second[0]} in _AMBIGUOUS:
        return Fraction(1)
    sizes = [_size(part) for part in (*first, *second)]
    (kind, counted), (kind_by, by), (other, counted_other), (other_by, by_other) = sizes
    if (kind, kind_by) != (other, other_by):
        return None
    return counted / by / (counted_other / by_other)


def _size(name: str) -> tuple[str, Fraction]:
    """What a unit measures, and how much of it."""
    power = {"²": 2, "³": 3}.get(name[-1:], 1)
    kind, size = _SIZES.get(name[:-1] if power > 1 else name, (name, "1"))
    return (kind + name[-1:] if power > 1 and kind != name else kind), Fraction(size) ** power


def _name(spelling: str) -> str:
    return _NAMES.get(spelling) or _NAMES.get(spelling.lower(), spelling)
