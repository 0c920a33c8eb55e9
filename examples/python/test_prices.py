"""python3 -m unittest discover examples/python"""

import unittest

import prices

SETTINGS = """{"per_million": {
    "large": {"prompt": 2.0, "cached": 0.5, "generated": 8.0},
    "free": {"prompt": 0, "cached": 0, "generated": 0}
}}"""


class Cost(unittest.TestCase):
    def test_cached_tokens_are_a_part_of_the_prompt(self):
        large = prices.read(SETTINGS)
        self.assertEqual(prices.cost(large, "large", 1_000_000, 0, 0), 2.0)
        self.assertEqual(prices.cost(large, "large", 1_000_000, 1_000_000, 0), 0.5)
        self.assertEqual(prices.cost(large, "large", 1000, 600, 50), 0.0015)

    def test_free_is_a_price_and_none_is_not(self):
        of = prices.read(SETTINGS)
        self.assertEqual(prices.cost(of, "free", 1000, 0, 50), 0)
        self.assertIsNone(prices.cost(of, "other", 1000, 0, 50))

    def test_a_star_is_the_price_of_the_others(self):
        of = prices.read('{"per_million": {"*": {"prompt": 1, "cached": 0, "generated": 1}}}')
        self.assertEqual(prices.cost(of, "other", 500_000, 0, 500_000), 1)


class Settings(unittest.TestCase):
    def says(self, text, sentence):
        with self.assertRaises(ValueError) as raised:
            prices.read(text)
        self.assertEqual(str(raised.exception), sentence)

    def test_what_makes_no_sense_is_named(self):
        self.says("{}", 'per_million must name a model or "*", got {}')
        self.says('{"price": 1}', "price is no setting of this policy; there is per_million")
        self.says(
            '{"per_million": {"m": {"prompt": 1}}}',
            'per_million.m must have prompt, cached, generated, got {"prompt": 1}',
        )
        self.says(
            '{"per_million": {"m": {"prompt": -1, "cached": 0, "generated": 0}}}',
            "per_million.m.prompt must be 0 to 1e9, got -1",
        )


if __name__ == "__main__":
    unittest.main()
