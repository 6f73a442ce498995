"""Units of quantities: 5 km is not 5 m. What is no unit known here says nothing."""

from __future__ import annotations

import re

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
    "ml": "ml milliliter milliliters millilitre millilitres",
    "l": "l L liter liters litre litres",
    "gal": "gal gallon gallons",
    "mph": "mph",
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
    "%": "% percent",
    "$": "$ dollar dollars usd buck bucks",
    "¢": "¢ cent cents",
    "€": "€ euro euros eur",
    "£": "£ gbp quid",
    "¥": "¥ yen jpy yuan cny",
    "₹": "₹ rupee rupees inr",
}
_NAMES = {spelling: name for name, spellings in _SPELLINGS.items() for spelling in spellings.split()}
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
    power = found["power"] or _PREFIXES.get((found["prefix"] or "")[:1].lower(), "")
    return (name + power, _name(found["per"]) + (found["per_power"] or "") if found["per"] else "")


def differ(first: Unit, second: Unit) -> bool:
    """Whether two quantities have units and these are not the same."""
    return NO_UNIT not in (first, second) and first != second


def _name(spelling: str) -> str:
    return _NAMES.get(spelling) or _NAMES.get(spelling.lower(), spelling)
