"""What showback counts. Knows neither the host nor WebAssembly, so any Python can test it."""

import json

KINDS = ("prompt", "cached", "generated")


def read(text):
    """The prices for each model, per million tokens.

    Raises `ValueError` with a sentence that names the key and the value.
    """
    settings = json.loads(text)
    for key in settings:
        if key != "per_million":
            raise ValueError(f"{key} is no setting of this policy; there is per_million")
    prices = settings.get("per_million", {})
    if not isinstance(prices, dict) or not prices:
        raise ValueError(f"per_million must name a model or \"*\", got {json.dumps(prices)}")
    return {model: _price(f"per_million.{model}", of) for model, of in prices.items()}


def _price(key, of):
    if not isinstance(of, dict) or set(of) != set(KINDS):
        raise ValueError(f"{key} must have {', '.join(KINDS)}, got {json.dumps(of)}")
    for kind, price in of.items():
        # bool is an int in Python; NaN compares false.
        if isinstance(price, bool) or not isinstance(price, (int, float)) or not 0 <= price < 1e9:
            raise ValueError(f"{key}.{kind} must be 0 to 1e9, got {json.dumps(price)}")
    return of


def cost(prices, model, prompt, cached, generated):
    """What that many tokens cost; `None` when nobody set a price for the model."""
    price = prices.get(model) or prices.get("*")
    if price is None:
        return None
    # Cached tokens are part of the prompt's.
    fresh = prompt - cached
    total = fresh * price["prompt"] + cached * price["cached"] + generated * price["generated"]
    return total / 1e6
