"""The words of the sample world: feature phrases, and the sentences that mention them.

Every sentence comes from a finite list, so a table's text column is one `take` by index, at any size. No sentence
shares a content word with a feature phrase, and no two phrases share one: a phrase found in a text is a mention.
Which feature a text mentions is `sample.py`'s business.
"""

from collections.abc import Sequence

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

EXPLANATION_OPENINGS = (
    "The user would enjoy this place for its {a}",
    "With its {a}, this place should suit the user well",
    "Because the user often seeks out {a}, this spot is a sensible choice",
    "This spot is known for its {a}, which the user has enjoyed elsewhere",
    "The user tends to praise the kind of {a} found here",
    "What should draw the user here is the {a}",
    "Given how much the user values {a}, this place is easy to recommend",
    "The {a} at this spot should appeal to the user",
)
EXPLANATION_CLOSINGS = (
    ", in line with what they liked before.",
    ", so a visit is likely to please them.",
    ", making it somewhere they would gladly return.",
    ", and that is what they look for.",
    ", so it deserves a spot on their list.",
    ", and they may well become a regular.",
)

REVIEW_OPENINGS = (
    "Came here for the {a} and left happy.",
    "The {a} made my evening.",
    "If you care about {a}, this is your place.",
    "I keep telling people about the {a} here.",
    "Once again the {a} was the reason I stayed.",
    "Hard to beat the {a} in this town.",
)
REVIEW_OPENINGS_UNMOVED = (
    "They are proud of the {a}, but it is not really my thing.",
    "A colleague brought me for the {a}; I would not have picked it.",
    "The {a} is probably good if you care for that.",
)
REVIEW_MORE = (
    "They also have {a}.",
    "My friend liked the {a} more.",
    "There is {a} too.",
)
REVIEW_CLOSINGS = (
    "Will be back.",
    "Recommended.",
    "We paid by card without trouble.",
    "It was busy but we got in.",
    "Second visit this year.",
)

ITEM_PROFILES = (
    "Guests come to this place for its {a} and its {b}.",
    "This place is known for {a}, and also for {b}.",
    "Visitors mention the {a} as well as the {b}.",
    "People who like {a} or {b} would enjoy this place.",
)
USER_PROFILES = (
    "This user cares most about {a}, and also likes {b}.",
    "Above all this user looks for {a}; {b} comes next.",
    "The user often praises {a} and sometimes {b}.",
    "A user who goes out for {a} first and {b} second.",
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
_ARTICLES = ("", "The ")
_JOINS = (" & ", " ", " on ", " and ", " at ")

CITIES = ("Ashford", "Brookhaven", "Eastmere", "Kingsport", "Northwick", "Southbridge")
PRICES = ("$", "$$", "$$$")
KINDS = ("café", "bistro", "restaurant", "diner", "tavern", "canteen")


def book(templates: tuple[str, ...], features: int) -> np.ndarray:
    """Every template with every feature.

    Returns:
        Strings `[templates, features]`, or `[templates, features, features]` for templates that mention two.
    """
    pair = "{b}" in templates[0]
    shape = (len(templates), features, features) if pair else (len(templates), features)
    texts = np.empty(shape, dtype=object)
    for place in np.ndindex(*shape):
        texts[place] = templates[place[0]].format(a=FEATURES[place[1]], b=FEATURES[place[-1]])
    return texts


def pick(texts: np.ndarray, *index: np.ndarray) -> pa.Array:
    """The entries of a `book` at the given index arrays `[rows]`, one an axis, as an Arrow string column `[rows]`."""
    return pa.array(texts.ravel(), pa.string()).take(pa.array(np.ravel_multi_index(index, texts.shape)))


def choose(choices: Sequence[str], rows: int, random: np.random.Generator) -> pa.Array:
    """A string column `[rows]`, each entry drawn uniformly from `choices`."""
    return pa.array(choices, pa.string()).take(pa.array(random.integers(len(choices), size=rows)))


def draw_titles(rows: int, random: np.random.Generator) -> pa.Array:
    """Names of places `[rows]`, each part drawn by itself; a name may occur twice."""
    parts = (choose(words, rows, random) for words in (_ARTICLES, _FIRST.split(), _JOINS, _SECOND.split()))
    return pc.binary_join_element_wise(*parts, "")
