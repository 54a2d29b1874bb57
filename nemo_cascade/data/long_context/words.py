"""Words, numbers and identifiers that long contexts are made of, drawn so that no answer stands inside another.

Replies are searched for answers as substrings. Numbers and coined words therefore have one length each, and of the common words
no noun begins another. Filler spells its numbers out, so that digits stand in needles only.
"""

import random
import uuid

ADJECTIVES = (
    "amber ancient ashen autumnal azure bashful bitter blunt bold brazen brisk bronze burly candid careful chilly "
    "civic clever cobalt coastal copper crimson crooked curious dainty damp dapper daring dusty eager earnest eastern "
    "elder elegant emerald fabled faded faithful fearless fertile fickle fierce flaxen fleeting floral foggy formal "
    "fragile frosty gallant gentle giant gilded glassy gleaming gloomy golden graceful granite grateful hasty hazel "
    "hidden hollow honest humble icy idle indigo ivory jagged jolly jovial keen kindly lavish leafy lilac limber "
    "lively lofty lonely lucid lunar maroon marble mellow merry mighty misty modest mossy muted narrow nimble noble "
    "northern oaken obscure olive opal orderly ornate patient pearly pebbled placid plain polished proud purple "
    "quaint quiet ragged rapid remote restless robust rosy rugged rustic sandy scarlet secret serene shady silent "
    "silken silver simple slender smoky snowy solar solemn sombre spotted steady stormy sturdy subtle sullen sunlit "
    "supple swift tawny tender thirsty tidal timid tranquil twilit upright urban valiant velvet vernal violet vivid "
    "wandering warm watchful wavy weary western whimsical wicked wild windy winding wintry wise wiry woolly yellow "
    "zealous"
).split()
NOUNS = (
    "abbey acorn almanac anchor anvil apron arbour archway armchair atlas attic axle badge bakery balcony ballad "
    "banner barley basin basket beacon beehive bellows bench blanket blossom boulder bramble brazier bridle brook "
    "bucket buckle bugle bureau button cabinet candle canvas canyon caravan cargo carpet cavern cedar cellar chapel "
    "chariot chimney chisel cider cinder citadel clarinet cloak clover cobbler comet compass copse corridor cottage "
    "courtyard cradle crater creek crystal cupboard curtain cushion cypress dagger dairy dovecote drawbridge "
    "driftwood drum dune easel ember engine estuary fable falcon farmhouse feather fennel ferry fiddle fjord "
    "flagstone flask fleece flint flute foundry fountain foxglove furnace gable galleon garden garland gatepost "
    "gazebo geyser glacier glove goblet gondola granary grotto hammock harbour harness harvest hatchet hayloft hearth "
    "hedge helmet heron hillside hinge horizon hourglass inkwell island jacket jetty journal jug kettle keystone kiln "
    "kingfisher knapsack ladder lagoon lantern lattice laurel ledger library lighthouse lilypad locket loom magpie "
    "mallet mandolin mantle maple market marsh meadow melody mill mirror monument moorland mortar mosaic nightingale "
    "nutmeg oar oatfield oboe orchard otter overcoat packhorse paddle palace parasol parchment parlour pasture "
    "pavilion peacock pendulum pepper pigeon pillar pitcher plateau plough pocket pond poplar porch prairie pulley "
    "quarry quill quilt rafter railing rampart raven reef ribbon rooftop rosebush rowboat rudder saddle sandal "
    "sapling satchel sawmill scabbard scarf schooner scroll seashell shed shepherd shovel shutter sickle signpost "
    "sledge spindle spire spoon spring stable staircase statue stirrup stove sundial swallow tablecloth tankard "
    "tapestry tavern teapot terrace thicket thimble threshold thunder tinderbox toolbox torch tower trellis trumpet "
    "tunnel turnip turret twine umbrella valley vase veranda viaduct village vineyard violin wagon walnut wardrobe "
    "warehouse waterfall weathervane whistle willow windmill woodpile workshop yarn"
).split()
FIRST_NAMES = (
    "Ada Alba Anton Arlo Basil Beatrix Bruno Carla Casper Cleo Clive Cora Dana Dora Edgar Elin Elsa Emil Esme Felix "
    "Flora Frida Georg Greta Hanna Hector Hilda Hugo Ida Ines Iris Ivan Jonas Judith Karin Lars Lena Leo Lotte Ludo "
    "Mabel Magnus Marta Milo Nadia Nils Nora Olga Oscar Otto Paula Petra Quentin Rasmus Rita Rosa Rufus Selma Silas "
    "Sofie Stella Theo Tilda Tobias Ursula Vera Viktor Wanda Willem Yara Zoe"
).split()
TRADES = (
    "weaving, brewing, fishing, glass blowing, boat building, printing, tanning, pottery, bookbinding, clockmaking, milling, "
    "salt making, beekeeping, rope making, quarrying, charcoal burning, cheese making, carpentry, wine growing, dyeing"
).split(", ")

_CONSONANTS, _VOWELS = "bdfghjklmnprstvwz", "aeiou"
_PAIRS = "ft lb ld lf lk lm lt lv mb mp nd nk nt rb rd rf rk rl rm rn rt rv sk sp st".split()


class Distinct:
    """Draws of `rng` that never repeat."""

    def __init__(self, rng: random.Random):
        self.rng, self._drawn = rng, set()

    def coined(self) -> str:
        """A made-up word of seven letters that can be spoken: none is part of another."""
        choice = self.rng.choice
        return self._new(
            lambda: "".join(map(choice, (_CONSONANTS, _VOWELS, _PAIRS, _VOWELS, _CONSONANTS, _VOWELS)))
        )

    def name(self) -> str:
        """A coined proper name."""
        return self.coined().capitalize()

    def pair(self) -> str:
        """Two common words joined by a hyphen, which filler never does."""
        return self._new(lambda: f"{self.rng.choice(ADJECTIVES)}-{self.rng.choice(NOUNS)}")

    def digits(self, n: int) -> str:
        """A number of n digits."""
        return self._new(lambda: str(self.rng.randrange(10 ** (n - 1), 10**n)))

    def identifier(self) -> str:
        """A random UUID."""
        return self._new(lambda: str(uuid.UUID(int=self.rng.getrandbits(128), version=4)))

    def letters(self, n: int) -> str:
        """n capitals."""
        return self._new(lambda: "".join(self.rng.choices("ABCDEFGHIJKLMNOPQRSTUVWXYZ", k=n)))

    def _new(self, draw) -> str:
        for _ in range(10_000):
            drawn = draw()
            if drawn not in self._drawn:
                self._drawn.add(drawn)
                return drawn
        raise ValueError("the words run out: this context is too long for so many different ones")
