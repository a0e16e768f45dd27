"""The words of the sample world: feature phrases, facts about places, and the sentences that mention them.

An item's texts are made of its title and facts: what kind of place it is, its neighbourhood and city, who runs it, an
occasion that it suits, and a detail of its kitchen or its rooms. Sentences have blanks, `{title}`, that `fill` fills in
for all rows of a table at once.

No sentence and no fact shares a content word with a feature phrase, and no two phrases share one: a phrase found in a
text is a mention. Which feature a text mentions is decided in `sample.py`.
"""

from collections.abc import Mapping, Sequence
from string import Formatter

# pyright: reportAttributeAccessIssue=false
# (pyarrow.compute makes its functions at import, where pyright cannot see them)
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

FEATURES = (
    "wood-fired pizza",
    "live jazz",
    "quiet corners",
    "fast friendly service",
    "rooftop views",
    "craft beer",
    "vegan bowls",
    "homemade pastries",
    "specialty coffee",
    "fresh sushi",
    "board games",
    "generous portions",
    "outdoor seating",
    "low prices",
    "cozy fireplace",
    "natural wines",
    "spicy noodles",
    "spacious playground",
    "free parking",
    "artisan gelato",
    "grilled seafood",
    "weekend brunch",
    "late-night hours",
    "sunny terrace",
)
# The phrases as a sentence has them where no `the` or `its` goes before.
INDEFINITE = tuple(
    f"a {feature}" if feature.endswith(("fireplace", "playground", "terrace")) else feature for feature in FEATURES
)

_FIRST = (
    "Alder Amber Aster Baxter Birch Briar Calder Cedar Clover Copper Corbin Cypress Dalton Dorset Elm Ember Fable "
    "Fennimore Finch Garnet Hadley Harlow Hawthorn Hazel Heron Iris Ivory Juniper Kestrel Kingsley Larkin Laurel "
    "Linden Lotus Magnolia Maple Marlow Merrick Mira Nettle Oakley Olive Opal Orchid Osprey Palmer Pearl Pike Quill "
    "Raven Redwood Rowan Saffron Sage Sparrow Sterling Tamsin Thistle Tilda Umber Vesper Willow Wren Yarrow"
)
_SECOND = (
    "Abbott Barlow Bishop Bramble Carver Chandler Cole Cooper Crane Dale Drake Ellis Fairfax Fletcher Forrest Foster "
    "Gable Grove Hale Harper Hatch Holloway Jasper Keel Kirby Lane Langley Locke Mason Mercer Mill Nash North Parrish "
    "Pelham Penn Porter Quincy Reed Rhodes Ridge Rook Sawyer Shaw Slate Stone Tanner Tate Teller Thorne Tucker Vale "
    "Vaughn Wade Walden Warden Webb Weller Wharton Whitlock Winslow Wolfe Woodrow York"
)
TITLES = (("", "The "), tuple(_FIRST.split()), (" & ", " ", " on ", " and ", " at "), tuple(_SECOND.split()))

NEIGHBOURHOODS = {
    "Ashford": ("Old Harbour", "Castle Hill", "Weavers Quarter", "Orchard Rise"),
    "Brookhaven": ("Canal Quarter", "Abbey Fields", "Lantern Hill", "Westgate"),
    "Eastmere": ("Foundry District", "Chapel Green", "Victoria Docks", "Little Meadow"),
    "Kingsport": ("Market Quarter", "Saint Anne", "Garden Suburb", "Riverbank"),
    "Northwick": ("University Hill", "Stonebridge", "Tanners Yard", "Queens Common"),
    "Southbridge": ("Station Quarter", "Glassworks", "Mariners Point", "Botanic Hill"),
}
KINDS = ("café", "bistro", "restaurant", "diner", "tavern", "canteen", "brasserie", "lunchroom")
HOSTS = (
    *("Amina", "Anton", "Clara", "Dmitri", "Elias", "Freya", "Greta", "Henrik", "Idris", "Ines", "Jonas", "Kofi"),
    *("Leila", "Lukas", "Marta", "Mateo", "Mei", "Noor", "Priya", "Rosa", "Sofia", "Tariq", "Teodor", "Yusuf"),
)
OCCASIONS = (
    "a first date",
    "a birthday dinner",
    "lunch with colleagues",
    "a family gathering",
    "a slow Sunday afternoon",
    "a meal before the theatre",
    "an anniversary dinner",
    "an evening with old classmates",
    "a lunch with a book",
    "a business lunch",
    "a break from shopping",
    "dinner with the grandparents",
    "a farewell party",
    "a stop after the museum",
    "a team celebration",
    "breakfast before work",
    "a chat over tea",
    "a meal with the neighbours",
)
DETAILS = (
    "the oak table under the skylight",
    "the lemon tart on the counter",
    "the blue tiles behind the bar",
    "the black cat by the door",
    "the wall of old postcards",
    "the pumpkin soup in autumn",
    "the candles on every table",
    "the red leather booths",
    "the walnut bread with honey",
    "the shelf of travel guides",
    "the roast chicken with rosemary",
    "the green velvet chairs",
    "the brass lamps over the bar",
    "the mint lemonade in tall glasses",
    "the plum dumplings on Mondays",
    "the kitchen behind glass",
    "the mushroom risotto",
    "the map painted on the ceiling",
    "the handwritten menu",
    "the stained-glass windows",
    "the onion soup under melted cheese",
    "the apple cake with whipped cream",
    "the tall bookshelves along the wall",
    "the tomato salad with basil",
    "the rice pudding with cinnamon",
    "the paper lanterns on the ceiling",
    "the station clock above the entrance",
    "the chalk drawings in the hallway",
    "the lentil stew with cumin",
    "the cheese plate with fig jam",
    "the pickled radishes on the house",
    "the old sewing machines as tables",
)

# An item's own data.
ATTRIBUTES = '{{"city": "{city}", "neighbourhood": "{neighbourhood}", "kind": "{kind}", "good_for": "{occasion}"}}'
DESCRIPTION = "A {kind} in {neighbourhood}, {city}, run by {host}, with {detail}."

# Explanations: why this user, then a little of what else is there. The first of each are the plainest.
EXPLANATION_REASONS = (
    "The user enjoys {title} because it offers {any}",
    "The user likes {title} because it has {any}",
    "The user keeps returning to places with {any}, so {title} should please them",
    "{title} should win the user over with its {feature}, a favourite of theirs",
    "Because the user picks places for their {feature}, {title} is an easy choice",
    "The user seldom passes up {any}, a good reason to try {title}",
    "The {feature} should draw the user to {title}, as at other places before",
    "In reviews the user praises {any}, which makes {title} a safe bet",
    "At {title} the user would find the {feature} that they look for",
    "Having enjoyed {any} elsewhere, the user would be glad of {title}",
    "For someone who values {any} this much, {title} is worth a visit",
    "{title} would suit the user, who is happiest at a place with {any}",
    "The user would choose {title} for its {feature}, as so often before",
    "Few things please the user as much as {any}, so {title} suits them",
    "Given how warmly the user speaks of {any}, {title} belongs on their list",
    "The user goes out of their way for {any}, which {title} offers",
    "The {feature} at {title} should appeal to the user, judging by their reviews",
    "With its {feature}, {title} offers what the user comes back for",
    "The user is drawn to {any}, and {title} is the place for that",
    "A place with {any} rarely fails the user, and {title} is one",
)
EXPLANATION_EXTRAS = (
    ".",
    ". {host} runs the {kind} in {neighbourhood}.",
    ", at the {kind} of {host} in {neighbourhood}.",
    ". The {kind} also suits {occasion}.",
    ". It works well for {occasion}, too.",
    ". The {kind} in {neighbourhood} also suits {occasion}.",
    ". They can also expect {detail}.",
    ", and {detail} would be a pleasant extra.",
    ". In {neighbourhood}, it also suits {occasion}.",
    ". Guests also mention {detail}.",
    ". They might save it for {occasion}.",
    ". {host} would point them to {detail}.",
    ". {host} runs the {kind}, which suits {occasion}.",
    ". They may also enjoy {detail}.",
    ". The {kind} is easy to recommend for {occasion}.",
    ". It is also known for {detail}.",
    ". {host} also makes it right for {occasion}.",
    ". People also like the {kind} for {detail}.",
    ". For {occasion}, too, it is a good {kind}.",
    ". They may also remember {detail}.",
    "; the {kind} would do for {occasion} as well.",
    ", with {detail} as an extra.",
    ", not least for {occasion} in {neighbourhood}.",
)

# Item profiles: where it is, what it is known for, what else people say. {a} and {b} are its features, in any order.
ITEM_PROFILE_PLACES = (
    "{title} is a {kind} in {neighbourhood}, {city}, run by {host} and a small team.",
    "In {neighbourhood}, {city}, {host} runs the {kind} {title} with a small team.",
    "{host} opened the {kind} {title} in {neighbourhood}, {city}, some years ago.",
    "{title} is a {kind} that {host} runs in {neighbourhood}, a part of {city}.",
)
ITEM_PROFILE_FEATURES = (
    " Guests come back for the {a} and for the {b}.",
    " It is known for its {a} and also for its {b}.",
    " People mention the {a} as well as the {b}.",
    " Its {a} and its {b} bring people back.",
    " Users who like {any_a} or {any_b} feel at home.",
)
ITEM_PROFILE_FACTS = (
    " Many remember {detail}, and the place suits {occasion}.",
    " It is a good choice for {occasion}, and people talk about {detail}.",
    " Regulars point out {detail} and recommend it for {occasion}.",
    " Those who go there for {occasion} often mention {detail}.",
    " It suits {occasion}, and first-time guests notice {detail}.",
)

# User profiles: {a} is what the user likes most, {b} what they like second.
USER_PROFILE_TASTES = (
    "This user cares most about {any_a} and also likes {any_b}.",
    "Above all this user looks for {any_a}, with {any_b} in second place.",
    "The user often praises {any_a} and now and then {any_b}.",
    "A user who goes out for {any_a} first and for {any_b} second.",
    "The user asks about {any_a} before anything else, and then about {any_b}.",
    "Most of all the user enjoys {any_a}, and after that {any_b}.",
)
USER_PROFILE_HABITS = (
    " They are at home in {neighbourhood}, {city}, and often go out for {occasion}.",
    " Home is {neighbourhood} in {city}, and a typical outing is {occasion}.",
    " They come from {neighbourhood} in {city} and like going out for {occasion}.",
    " Most of their outings start in {neighbourhood}, {city}, often for {occasion}.",
)

# Reviews: what the visit was for, something of the place, a thought or the item's other feature, a last word. Only some
# tell facts, so that what most reviews of an item have in common is its features.
REVIEW_PLEASED = (
    "Came here for the {feature} and left happy.",
    "The {feature} made my evening.",
    "If you go out for the {feature}, this is your place.",
    "I keep telling people about the {feature} here.",
    "Once again I stayed because of the {feature}.",
    "Hard to beat the {feature} in this town.",
    "I had heard about the {feature} and it was all true.",
    "We went back for the {feature} and would do so again.",
    "My first visit was for the {feature} and so was my second.",
    "I am glad that I found a place with the {feature} that I like.",
)
REVIEW_UNMOVED = (
    "They are proud of the {feature}, but it is not really my thing.",
    "A colleague brought me for the {feature}; I would not have picked it.",
    "The {feature} may be for others who care for that.",
)
REVIEW_PLACE = (
    " I also noticed {detail}.",
    " {host} told us about {detail}.",
    " My cousin took a picture of {detail}.",
    " It is easy to find in {neighbourhood}.",
    " I had a look around {neighbourhood} first.",
    " {host} remembered us from last year.",
    " We talked to {host} for a while.",
    " Thanks to {host} for looking after us.",
    " It took me far too long to come here.",
    " We stayed longer than we had planned.",
    " I went with someone who knows the {kind} well.",
)
REVIEW_THOUGHTS = (
    " We were there for {occasion}.",
    " I would come here for {occasion}.",
    " It suited us for {occasion}.",
    " I needed somewhere for {occasion} and it worked.",
    " I did not expect much and was wrong.",
    " It was the right choice for that evening.",
    " I can see why people keep going there.",
    " We will bring others along.",
    " I have told everyone at work.",
    " It was better than we had expected.",
    " I would do it all over again.",
)
REVIEW_OTHERS = (
    " They also have {any}.",
    " My sister liked the {feature} more.",
    " You will find {any} too.",
    " Others at our table talked about the {feature}.",
)
REVIEW_LAST = (
    "",
    " Will be back.",
    " Recommended.",
    " We paid by card without trouble.",
    " It was busy but we got in.",
    " Second visit this year.",
)

# A column of strings as values and, for each row, the index of its value.
Blank = tuple[Sequence[str] | pa.Array, np.ndarray]
# An Arrow array of strings holds 2 GB at most.
_ROWS_AT_ONCE = 1 << 20


def fill(sentences: Sequence[str], which: np.ndarray, blanks: Mapping[str, Blank]) -> pa.ChunkedArray:
    """One sentence per row, with its blanks filled in.

    Args:
        sentences: with blanks `{name}`.
        which: `[rows]`, the index of each row's sentence.
        blanks: name -> values, and `[rows]` the index of each row's value.

    Returns:
        A string column `[rows]`.
    """
    values = {name: pa.array(found, pa.string()) for name, (found, _) in blanks.items()}
    chunks = [
        _fill(sentences, np.arange(start, min(start + _ROWS_AT_ONCE, len(which))), which, values, blanks)
        for start in range(0, len(which), _ROWS_AT_ONCE)
    ]
    return pa.chunked_array(chunks, pa.string())


def _fill(sentences, rows: np.ndarray, which: np.ndarray, values: dict[str, pa.Array], blanks) -> pa.Array:
    """The texts of some of the rows: sentence by sentence, then in the order of the rows again."""
    order = np.argsort(which[rows].astype(np.int16), kind="stable")
    ends = np.cumsum(np.bincount(which[rows], minlength=len(sentences)))
    back = np.empty_like(order)
    back[order] = np.arange(len(order))
    filled = []
    for sentence, own in zip(sentences, np.split(rows[order], ends[:-1]), strict=True):
        parts: list = [pa.repeat("", len(own))]
        for literal, name, _, _ in Formatter().parse(sentence):
            parts.append(literal)
            if name is not None:
                parts.append(values[name].take(pa.array(blanks[name][1][own])))
        filled.append(pc.binary_join_element_wise(*parts, ""))
    return pa.concat_arrays(filled).take(pa.array(back))


def join(*columns: pa.ChunkedArray) -> pa.ChunkedArray:
    """The texts of each row put together, with nothing between them."""
    return pc.binary_join_element_wise(*columns, "")


def draw_titles(rows: int, random: np.random.Generator) -> pa.Array:
    """Names of places `[rows]`, each part drawn by itself; a name may occur twice."""
    parts = (pa.array(words).take(pa.array(random.integers(len(words), size=rows))) for words in TITLES)
    return pc.binary_join_element_wise(*parts, "")
